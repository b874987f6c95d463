"""Mistakes on the command line of train_net.py and in configs: each ends in one line before anything is written.

A mistake is a line of the table: what is added to a command that is right, and words of the answer.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import train_net
from sparsercnn.errors import InputError

ROOT = Path(__file__).parent.parent
TINY = """
MODEL.DEVICE cpu MODEL.NECK.OUT_CHANNELS 16 MODEL.SparseRCNN.HIDDEN_DIM 16 MODEL.SparseRCNN.NUM_HEADS 1
MODEL.SparseRCNN.NUM_PROPOSALS 8 MODEL.SparseRCNN.DIM_FEEDFORWARD 16 MODEL.SparseRCNN.DIM_DYNAMIC 8
SOLVER.MAX_ITER 2 SOLVER.WARMUP_ITERS 1 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
""".split()
FASTER_RCNN = """
MODEL.META_ARCHITECTURE GeneralizedRCNN MODEL.BACKBONE.NAME build_resnet_fpn_backbone
MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5']
MODEL.FPN.OUT_CHANNELS 16 MODEL.RPN.IN_FEATURES ['p2','p3','p4','p5','p6'] MODEL.ROI_HEADS.NUM_CLASSES 1
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead
MODEL.ANCHOR_GENERATOR.SIZES [[32],[64],[128],[256],[512]]
"""

SECTIONS = {"SOLVER", "solver", "MODEL", "INPUT", "DATASETS", "DATALOADER", "TEST", "SEED", "OUTPUT_DIR", "VIS_PERIOD"}
SECTIONS |= {"FLOAT32_PRECISION", "FASTER_RCNN"}

MISTAKES = """
--num-gpus 0                                 | --num-gpus 0; it counts the processes, at least 1
--num-gpus -1                                | --num-gpus -1; it counts the processes, at least 1
--num-machines 0                             | --num-machines 0; it must be at least 1
--num-machines -2                            | --num-machines -2; it must be at least 1
--machine-rank 1                             | --machine-rank 1, but with --num-machines 1 ranks are 0 to 0
--machine-rank -1                            | --machine-rank -1
--num-machines 2 --machine-rank 2            | --machine-rank 2, but with --num-machines 2 ranks are 0 to 1
--num-machines 2 --dist-url auto             | --num-machines 2 needs --dist-url tcp://HOST:PORT
--dist-url tcp://10.0.0.1                    | --dist-url 'tcp://10.0.0.1'; it must be like tcp://HOST:PORT
--dist-url tcp://10.0.0.1:port               | --dist-url 'tcp://10.0.0.1:port'
--dist-url 10.0.0.1:29500                    | --dist-url '10.0.0.1:29500'
--dist-url ''                                | --dist-url ''
--num-gpus 3                                 | SOLVER.IMS_PER_BATCH is 2 | multiple of 3
SOLVER.REFERENCE_WORLD_SIZE 3                | SOLVER.IMS_PER_BATCH is 2 | SOLVER.REFERENCE_WORLD_SIZE 3 cannot share
DATASETS.TEST ('mistakes','mistakes')        | DATASETS.TEST names mistakes twice
DATASETS.TRAIN ('mistakes','mistakes')       | DATASETS.TRAIN names mistakes twice
--resume --eval-only                         | --resume: there is no checkpoint in OUTPUT_DIR
--eval-only                                  | MODEL.WEIGHTS is empty: --eval-only
--eval-only MODEL.WEIGHTS gone.pth           | MODEL.WEIGHTS: there is no file gone.pth
--config-file gone.yaml                      | config file gone.yaml does not exist
--config-file ''                             | MODEL.ROI_HEADS.IN_FEATURES ['p2', 'p3', 'p4', 'p5'] asks for p2
--config-file .                              | config file . does not exist
SOLVER.MAX_ITER                              | options are KEY VALUE pairs
SOLVER.MAX_ITER 3 --resume                   | --resume must stand before
SOLVER.MAX_ITERS 3                           | unknown config key SOLVER.MAX_ITERS | did you mean SOLVER.MAX_ITER?
SOLVER 3                                     | SOLVER
SOLVER.MAX_ITER.X 3                          | SOLVER.MAX_ITER
solver.max_iter 3                            | unknown config key solver.max_iter
SOLVER.MAX_ITER soon                         | SOLVER.MAX_ITER | must be of type int, not str
SOLVER.MAX_ITER 3.5                          | SOLVER.MAX_ITER | must be of type int, not float
SOLVER.MAX_ITER True                         | SOLVER.MAX_ITER | must be of type int, not bool
SOLVER.MAX_ITER None                         | SOLVER.MAX_ITER has no value
SOLVER.MAX_ITER 0                            | SOLVER.MAX_ITER is 0; it must be at least 1
SOLVER.MAX_ITER -5                           | SOLVER.MAX_ITER is -5
SOLVER.MAX_ITER 1000000000000000000000       | SOLVER.MAX_ITER is an integer beyond
SOLVER.BASE_LR 0.0                           | SOLVER.BASE_LR is 0.0; it must be above 0
SOLVER.BASE_LR -0.1                          | SOLVER.BASE_LR is -0.1
SOLVER.BASE_LR 1e999                         | SOLVER.BASE_LR is inf; it must be above 0 and finite
SOLVER.BASE_LR nan                           | SOLVER.BASE_LR | must be of type float, not str: nan
SOLVER.BASE_LR fast                          | SOLVER.BASE_LR | must be of type float, not str
SOLVER.BASE_LR_END -1.0                      | SOLVER.BASE_LR_END is -1.0; it must be at least 0
SOLVER.BASE_LR_END 1.0                       | SOLVER.BASE_LR_END is 1.0 | the learning rate cannot rise
SOLVER.BACKBONE_MULTIPLIER -1.0              | SOLVER.BACKBONE_MULTIPLIER is -1.0
SOLVER.BIAS_LR_FACTOR -1.0                   | SOLVER.BIAS_LR_FACTOR is -1.0
SOLVER.OPTIMIZER ADAM                        | SOLVER.OPTIMIZER is 'ADAM' | did you mean ADAMW?
SOLVER.OPTIMIZER SGD SOLVER.NESTEROV True SOLVER.MOMENTUM 0.0 | SOLVER.MOMENTUM is 0.0; Nesterov's momentum
SOLVER.MOMENTUM 2.0                          | SOLVER.MOMENTUM is 2.0; it must be from 0 to 1
SOLVER.WEIGHT_DECAY -0.1                     | SOLVER.WEIGHT_DECAY is -0.1
SOLVER.WEIGHT_DECAY_NORM -0.1                | SOLVER.WEIGHT_DECAY_NORM is -0.1
SOLVER.WEIGHT_DECAY_BIAS -0.1                | SOLVER.WEIGHT_DECAY_BIAS is -0.1
SOLVER.LR_SCHEDULER_NAME OneCycleLR          | SOLVER.LR_SCHEDULER_NAME is 'OneCycleLR' | did you mean OneCycle?
SOLVER.WARMUP_METHOD exponential             | SOLVER.WARMUP_METHOD is 'exponential'; choose one of linear, constant
SOLVER.WARMUP_ITERS -1                       | SOLVER.WARMUP_ITERS is -1
SOLVER.LR_SCHEDULER_NAME OneCycle SOLVER.WARMUP_ITERS 9 | SOLVER.WARMUP_ITERS is 9 and SOLVER.MAX_ITER is 2
SOLVER.LR_SCHEDULER_NAME OneCycle SOLVER.WARMUP_ITERS 0 | SOLVER.WARMUP_ITERS is 0
SOLVER.WARMUP_FACTOR -0.5                    | SOLVER.WARMUP_FACTOR is -0.5
SOLVER.WARMUP_FACTOR 5.0                     | SOLVER.WARMUP_FACTOR is 5.0
SOLVER.GAMMA 0.0                             | SOLVER.GAMMA is 0.0
SOLVER.STEPS 7                               | SOLVER.STEPS | must be of type tuple, not int
SOLVER.STEPS ('a',)                          | SOLVER.STEPS is ('a',)
SOLVER.STEPS (-5,)                           | SOLVER.STEPS is (-5,)
SOLVER.STEPS (9,5)                           | SOLVER.STEPS is (9, 5) | increase
SOLVER.NUM_DECAYS 0                          | SOLVER.NUM_DECAYS is 0
SOLVER.IMS_PER_BATCH 0                       | SOLVER.IMS_PER_BATCH is 0
SOLVER.IMS_PER_BATCH -4                      | SOLVER.IMS_PER_BATCH is -4
SOLVER.ACCUMULATE 0                          | SOLVER.ACCUMULATE is 0
SOLVER.REFERENCE_WORLD_SIZE -1               | SOLVER.REFERENCE_WORLD_SIZE is -1
SOLVER.CHECKPOINT_PERIOD 0                   | SOLVER.CHECKPOINT_PERIOD is 0
SOLVER.CLIP_GRADIENTS.CLIP_VALUE -1.0        | SOLVER.CLIP_GRADIENTS.CLIP_VALUE is -1.0
SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.0         | SOLVER.CLIP_GRADIENTS.CLIP_VALUE is 0.0
SOLVER.CLIP_GRADIENTS.CLIP_TYPE full         | SOLVER.CLIP_GRADIENTS.CLIP_TYPE is 'full'
SOLVER.CLIP_GRADIENTS.NORM_TYPE 0.0          | SOLVER.CLIP_GRADIENTS.NORM_TYPE is 0.0
SOLVER.AMP.PRECISION fp16                    | SOLVER.AMP.PRECISION is 'fp16'
SOLVER.AMP.ENABLED yes                       | SOLVER.AMP.ENABLED | must be of type bool
SEED 99999999999                             | SEED is 99999999999; it must be at most 2147483647
SEED 1.5                                     | SEED | must be of type int
VIS_PERIOD -1                                | VIS_PERIOD is -1
FLOAT32_PRECISION low                        | FLOAT32_PRECISION is 'low'
OUTPUT_DIR ''                                | OUTPUT_DIR ''
OUTPUT_DIR /proc/nothing                     | OUTPUT_DIR '/proc/nothing' is no folder that can be written to
OUTPUT_DIR /dev/null                         | OUTPUT_DIR '/dev/null'
OUTPUT_DIR 7                                 | OUTPUT_DIR | must be of type str
DATALOADER.NUM_WORKERS -1                    | DATALOADER.NUM_WORKERS is -1; it must be from 0 to
DATALOADER.NUM_WORKERS 1000000               | DATALOADER.NUM_WORKERS is 1000000
DATALOADER.SAMPLER_TRAIN TrainSampler        | DATALOADER.SAMPLER_TRAIN | did you mean TrainingSampler?
DATALOADER.REPEAT_THRESHOLD -1.0             | DATALOADER.REPEAT_THRESHOLD is -1.0
DATALOADER.RANDOM_SUBSET_RATIO 0.0           | DATALOADER.RANDOM_SUBSET_RATIO is 0.0
DATALOADER.RANDOM_SUBSET_RATIO 2.0           | DATALOADER.RANDOM_SUBSET_RATIO is 2.0
DATASETS.TRAIN ()                            | DATASETS.TRAIN is empty
DATASETS.TRAIN mistakes                      | DATASETS.TRAIN | must be of type tuple, not str
DATASETS.TRAIN (7,)                          | DATASETS.TRAIN is (7,) | must be a word
DATASETS.TRAIN ('mistake',)                  | data set mistake is not registered; did you mean mistakes?
DATASETS.TEST ('mistake',)                   | data set mistake is not registered; did you mean mistakes?
DATASETS.COCO_JSON [['a','b']]               | DATASETS.COCO_JSON: ['a', 'b'] must be [name, annotation file,
DATASETS.COCO_JSON [['a/b','c','d']]         | DATASETS.COCO_JSON: 'a/b'
INPUT.FORMAT rgb                             | INPUT.FORMAT is 'rgb' | choose one of RGB, BGR
INPUT.FORMAT L                               | INPUT.FORMAT is 'L' and MODEL.PIXEL_MEAN is | a mean for each channel
INPUT.MIN_SIZE_TRAIN ()                      | INPUT.MIN_SIZE_TRAIN is (); it must be a list of 1 or more values
INPUT.MIN_SIZE_TRAIN ('64',)                 | INPUT.MIN_SIZE_TRAIN is ('64',)
INPUT.MIN_SIZE_TRAIN (-64,)                  | INPUT.MIN_SIZE_TRAIN is (-64,)
INPUT.MIN_SIZE_TRAIN (9999,)                 | INPUT.MIN_SIZE_TRAIN is (9999,) and INPUT.MAX_SIZE_TRAIN is
INPUT.MAX_SIZE_TRAIN 0                       | INPUT.MAX_SIZE_TRAIN is 0
INPUT.MIN_SIZE_TRAIN_SAMPLING random         | INPUT.MIN_SIZE_TRAIN_SAMPLING is 'random'
INPUT.MIN_SIZE_TRAIN_SAMPLING range          | INPUT.MIN_SIZE_TRAIN is (64,); a range is the smallest and the largest
INPUT.MIN_SIZE_TEST -1                       | INPUT.MIN_SIZE_TEST is -1
INPUT.MIN_SIZE_TEST 9999                     | INPUT.MIN_SIZE_TEST is 9999 and INPUT.MAX_SIZE_TEST is
INPUT.MAX_SIZE_TEST 0                        | INPUT.MAX_SIZE_TEST is 0
INPUT.MAX_PIXELS 0                           | INPUT.MAX_PIXELS is 0; it must be from 1 to 178956970
INPUT.MAX_PIXELS 1000                        | it has 64×64 pixels, more than INPUT.MAX_PIXELS
INPUT.RANDOM_FLIP both                       | INPUT.RANDOM_FLIP is 'both'
INPUT.CROP.TYPE relativ                      | INPUT.CROP.TYPE is 'relativ' | did you mean relative?
INPUT.CROP.SIZE [0.5]                        | INPUT.CROP.SIZE is [0.5]; it must be a list of 2 values
INPUT.CROP.ENABLED True INPUT.CROP.TYPE relative INPUT.CROP.SIZE [384,600] | INPUT.CROP.SIZE is [384, 600]; relative
INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute_range INPUT.CROP.SIZE [60,30] | INPUT.CROP.SIZE is [60, 30]
MODEL.META_ARCHITECTURE SparseRCN            | MODEL.META_ARCHITECTURE is 'SparseRCN' | did you mean SparseRCNN?
MODEL.DEVICE gpu                             | MODEL.DEVICE is 'gpu'
MODEL.DEVICE cuda:first                      | MODEL.DEVICE is 'cuda:first'
MODEL.PIXEL_MEAN []                          | MODEL.PIXEL_MEAN is []
MODEL.PIXEL_MEAN [1.0,2.0]                   | MODEL.PIXEL_MEAN is [1.0, 2.0] and MODEL.PIXEL_STD is | one for each
MODEL.PIXEL_STD [0.0,0.0,0.0]                | MODEL.PIXEL_STD is [0.0, 0.0, 0.0]
MODEL.PIXEL_STD ['a','b','c']                | MODEL.PIXEL_STD is ['a', 'b', 'c']
MODEL.BACKBONE.NAME build_resnet             | MODEL.BACKBONE.NAME | build_resnet_fpn_backbone
MODEL.RESNETS.DEPTH 42                       | MODEL.RESNETS.DEPTH is 42; it must be one of 18, 34, 50, 101, 152
MODEL.RESNETS.RES2_OUT_CHANNELS 256          | MODEL.RESNETS.RES2_OUT_CHANNELS is 256; a ResNet of 18 or 34 layers
MODEL.RESNETS.NORM BatchNorm                 | MODEL.RESNETS.NORM is 'BatchNorm'
MODEL.RESNETS.OUT_FEATURES []                | MODEL.RESNETS.OUT_FEATURES is []
MODEL.RESNETS.OUT_FEATURES ['res9']          | MODEL.RESNETS.OUT_FEATURES is ['res9']
MODEL.RESNETS.OUT_FEATURES ['res5']          | MODEL.NECK.IN_FEATURES names res2, res3, res4
MODEL.RESNETS.RES5_DILATION 3                | MODEL.RESNETS.RES5_DILATION is 3
MODEL.RESNETS.NUM_GROUPS 0                   | MODEL.RESNETS.NUM_GROUPS is 0
MODEL.NECK.NAME FNP                          | MODEL.NECK.NAME is 'FNP'
MODEL.NECK.BOTTOM_UP build_resnet            | MODEL.NECK.BOTTOM_UP is 'build_resnet'
MODEL.NECK.IN_FEATURES []                    | MODEL.NECK.IN_FEATURES
MODEL.NECK.IN_FEATURES ['res2','res4']       | MODEL.NECK.IN_FEATURES
MODEL.NECK.OUT_CHANNELS 0                    | MODEL.NECK.OUT_CHANNELS is 0
MODEL.NECK.OUT_CHANNELS 32                   | MODEL.SparseRCNN.HIDDEN_DIM is 16 | Set HIDDEN_DIM
MODEL.NECK.NORM Batch                        | MODEL.NECK.NORM is 'Batch'
MODEL.NECK.NUM_LEVELS -1                     | MODEL.NECK.NUM_LEVELS is -1
MODEL.ROI_HEADS.IN_FEATURES ['p2','p9']      | MODEL.ROI_HEADS.IN_FEATURES ['p2', 'p9'] asks for p9
MODEL.ROI_HEADS.IN_FEATURES []               | MODEL.ROI_HEADS.IN_FEATURES is []
MODEL.ROI_HEADS.IN_FEATURES [2,3]            | MODEL.ROI_HEADS.IN_FEATURES is [2, 3]
MODEL.ROI_HEADS.IN_FEATURES ['p2','p4']      | MODEL.ROI_HEADS.IN_FEATURES | strides [4, 16]
MODEL.ROI_ROUTING.MODE levels                | MODEL.ROI_ROUTING.MODE is 'levels' | did you mean level?
MODEL.ROI_ROUTING.POOLER RoIPooler           | MODEL.ROI_ROUTING.POOLER | did you mean ROIPooler?
MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE 0       | MODEL.ROI_ROUTING.CANONICAL_BOX_SIZE is 0
MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign      | MODEL.ROI_BOX_HEAD.POOLER_TYPE is 'ROIAlign' | did you mean ROIAlignV2?
MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 0       | MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is 0
MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 0   | MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO is 0; fused needs
MODEL.SparseRCNN.NUM_CLASSES 0               | MODEL.SparseRCNN.NUM_CLASSES is 0
MODEL.SparseRCNN.NUM_CLASSES 4               | has 1 categories (cat), but MODEL.SparseRCNN.NUM_CLASSES is 4
MODEL.SparseRCNN.NUM_PROPOSALS 0             | MODEL.SparseRCNN.NUM_PROPOSALS is 0
MODEL.SparseRCNN.NHEADS 0                    | MODEL.SparseRCNN.NHEADS is 0
MODEL.SparseRCNN.NHEADS 3                    | MODEL.SparseRCNN.HIDDEN_DIM is 16 and MODEL.SparseRCNN.NHEADS is 3
MODEL.SparseRCNN.HIDDEN_DIM -16              | MODEL.SparseRCNN.HIDDEN_DIM is -16
MODEL.SparseRCNN.DIM_FEEDFORWARD 0           | MODEL.SparseRCNN.DIM_FEEDFORWARD is 0
MODEL.SparseRCNN.DROPOUT 2.0                 | MODEL.SparseRCNN.DROPOUT is 2.0; it must be from 0 to 1
MODEL.SparseRCNN.ACTIVATION swish            | MODEL.SparseRCNN.ACTIVATION is 'swish'
MODEL.SparseRCNN.NUM_CLS -1                  | MODEL.SparseRCNN.NUM_CLS is -1
MODEL.SparseRCNN.NUM_HEADS 0                 | MODEL.SparseRCNN.NUM_HEADS is 0
MODEL.SparseRCNN.NUM_DYNAMIC 3               | MODEL.SparseRCNN.NUM_DYNAMIC is 3; it must be one of 2
MODEL.SparseRCNN.DIM_DYNAMIC 0               | MODEL.SparseRCNN.DIM_DYNAMIC is 0
MODEL.SparseRCNN.CLASS_WEIGHT -2.0           | MODEL.SparseRCNN.CLASS_WEIGHT is -2.0
MODEL.SparseRCNN.GIOU_WEIGHT 1e999           | MODEL.SparseRCNN.GIOU_WEIGHT is inf
MODEL.SparseRCNN.L1_WEIGHT -5.0              | MODEL.SparseRCNN.L1_WEIGHT is -5.0
MODEL.SparseRCNN.ALPHA 5.0                   | MODEL.SparseRCNN.ALPHA is 5.0; it must be from 0 to 1
MODEL.SparseRCNN.GAMMA -2.0                  | MODEL.SparseRCNN.GAMMA is -2.0
MODEL.SparseRCNN.PRIOR_PROB 0.0              | MODEL.SparseRCNN.PRIOR_PROB is 0.0; it must be between 0 and 1
MODEL.SparseRCNN.ASSIGNMENT dynamic          | MODEL.SparseRCNN.ASSIGNMENT is 'dynamic' | did you mean dynamic_k?
MODEL.SparseRCNN.CLASS_LOSS cross            | MODEL.SparseRCNN.CLASS_LOSS is 'cross'
MODEL.SparseRCNN.PROPOSALS k-means           | MODEL.SparseRCNN.PROPOSALS | did you mean kmeans?
MODEL.SparseRCNN.DENSE_IN_FEATURES ['p9']    | DENSE_IN_FEATURES
MODEL.SparseRCNN.DENOISING_QUERIES -1        | MODEL.SparseRCNN.DENOISING_QUERIES is -1
MODEL.SparseRCNN.BOX_NOISE -0.4              | MODEL.SparseRCNN.BOX_NOISE is -0.4
MODEL.SparseRCNN.LABEL_NOISE 2.0             | MODEL.SparseRCNN.LABEL_NOISE is 2.0
SOLVER.EMA_DECAY 1.0                         | SOLVER.EMA_DECAY is 1.0; it must be at least 0 and be below 1
TEST.STAGES [0]                              | TEST.STAGES is [0]
TEST.STAGES [9]                              | TEST.STAGES is [9] and MODEL.SparseRCNN.NUM_HEADS is 1
FASTER_RCNN TEST.STAGES [1]                  | TEST.STAGES is [1]; it must be empty: only Sparse R-CNN
MODEL.WEIGHTS gone.pth                       | MODEL.WEIGHTS: there is no file gone.pth
MODEL.WEIGHTS /tmp                           | MODEL.WEIGHTS: there is no file /tmp
MODEL.CPU_KERNELS True                       | MODEL.CPU_KERNELS | is now SOLVER.FAST
MODEL.LOAD_PROPOSALS True                    | DATASETS.PROPOSAL_FILES_TRAIN names 0 files
TEST.PRECISION float                         | TEST.PRECISION is 'float' | did you mean float32?
TEST.PREPARE False TEST.COMPILE True         | TEST.PREPARE is False and TEST.COMPILE is True
TEST.EVAL_PERIOD -1                          | TEST.EVAL_PERIOD is -1
TEST.DETECTIONS_PER_IMAGE -5                 | TEST.DETECTIONS_PER_IMAGE is -5
TEST.AUG.ENABLED True TEST.AUG.MIN_SIZES ()  | TEST.AUG.MIN_SIZES is ()
TEST.AUG.ENABLED True TEST.AUG.MAX_SIZE 0    | TEST.AUG.MAX_SIZE is 0
TEST.EXPECTED_RESULTS [['AP',42]]            | TEST.EXPECTED_RESULTS is [['AP', 42]]
TEST.PRECISE_BN.NUM_ITER 0                   | TEST.PRECISE_BN.NUM_ITER is 0
MODEL.BACKBONE.NAME build_timm_backbone MODEL.TIMM.NAME resnot50 | MODEL.TIMM.NAME is 'resnot50'
FASTER_RCNN MODEL.ROI_HEADS.NAME StandardROIHead   | MODEL.ROI_HEADS.NAME | did you mean StandardROIHeads?
FASTER_RCNN MODEL.ROI_HEADS.NUM_CLASSES 5          | has 1 categories (cat), but MODEL.ROI_HEADS.NUM_CLASSES is 5
FASTER_RCNN MODEL.ROI_HEADS.NMS_THRESH_TEST 5.0    | MODEL.ROI_HEADS.NMS_THRESH_TEST is 5.0
FASTER_RCNN MODEL.RPN.HEAD_NAME StandardHead       | MODEL.RPN.HEAD_NAME | did you mean StandardRPNHead?
FASTER_RCNN MODEL.RPN.POST_NMS_TOPK_TRAIN 0        | MODEL.RPN.POST_NMS_TOPK_TRAIN is 0
FASTER_RCNN MODEL.PROPOSAL_GENERATOR.NAME RNP      | MODEL.PROPOSAL_GENERATOR.NAME | did you mean RPN?
FASTER_RCNN MODEL.ANCHOR_GENERATOR.NAME Default    | MODEL.ANCHOR_GENERATOR.NAME is 'Default'
FASTER_RCNN MODEL.FPN.FUSE_TYPE mean               | MODEL.FPN.FUSE_TYPE is 'mean'
FASTER_RCNN MODEL.FPN.NORM Batch                   | MODEL.FPN.NORM is 'Batch'
FASTER_RCNN MODEL.FPN.IN_FEATURES ['res2','res9']  | MODEL.FPN.IN_FEATURES is ['res2', 'res9']; the pyramid reads
"""
TABLE = [[part.strip() for part in line.split("|")] for line in MISTAKES.strip().splitlines()]


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """A command that is right, and the folder that it would write to."""
    folder = tmp_path_factory.mktemp("mistakes")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81, "iscrowd": 0}],
    }
    (folder / "a.json").write_text(json.dumps(content))
    data = f"DATASETS.COCO_JSON [['mistakes','{folder}/a.json','{folder}']] DATASETS.TRAIN ('mistakes',)"
    options = f"{data} DATASETS.TEST ('mistakes',) MODEL.SparseRCNN.NUM_CLASSES 1 OUTPUT_DIR {folder}/output"
    yield ["--config-file", str(ROOT / "configs" / "quickstart.yaml"), *TINY, *options.split()], folder / "output"
    DatasetCatalog.remove("mistakes")
    MetadataCatalog.remove("mistakes")


def add(command, more):
    """The command with more flags before its options, and more options, from the first key on, at their end."""
    words = ["" if word == "''" else word for word in more.replace("FASTER_RCNN", FASTER_RCNN).split()]
    first = next((i for i, word in enumerate(words) if word.split(".")[0] in SECTIONS), len(words))
    return [*command[:2], *words[:first], *command[2:], *words[first:]]


def read_config(command):
    return train_net.read_config(train_net.read_arguments(command))


def test_the_command_without_a_mistake_is_accepted(right, caplog):
    command, output = right
    read_config(command)
    assert output.is_dir() and not caplog.records
    output.rmdir()
    faster_rcnn = add(command, "FASTER_RCNN")
    assert read_config(faster_rcnn).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    output.rmdir()


@pytest.mark.parametrize("mistake", TABLE, ids=lambda mistake: mistake[0][:60])
def test_a_mistake_ends_in_one_line_before_anything_is_written_or_logged(right, mistake, caplog):
    command, output = right
    more, *words = mistake
    with pytest.raises(InputError) as error:
        read_config(add(command, more))
    message = str(error.value)
    assert message.isprintable() and all(word in message for word in words), message
    assert not output.exists() and not caplog.records


def test_there_are_many(right):
    assert len({more for more, *_ in TABLE}) >= 150


@pytest.mark.parametrize("more", ["--num-gpus two", "--machine-rank", "--no-such-flag"])
def test_what_is_no_command_line(right, more, capsys):
    with pytest.raises(SystemExit) as error:
        read_config([*right[0][:2], *more.split()])
    assert error.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("SOLVER.WARMUP_ITERS 1000 SOLVER.LR_SCHEDULER_NAME WarmupCosineLR", "before it reaches its learning rate"),
        ("SOLVER.STEPS (1,9) SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR", "before the learning rate falls"),
    ],
)
def test_what_detectron2_accepts_but_hardly_anybody_means_is_warned_of(right, more, words, caplog):
    command, output = right
    read_config(add(command, more))
    output.rmdir()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and words in record.getMessage()


@pytest.mark.parametrize("more", ["--num-gpus -1", "--eval-only", "SOLVER.BASE_LR 1e999", "MODEL.RESNETS.DEPTH 42"])
def test_it_is_printed_and_the_status_is_2(right, more, capsys):
    assert train_net.main(add(right[0], more)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1


def test_the_program_prints_nothing_else(right):
    command = [sys.executable, ROOT / "train_net.py", *add(right[0], "MODEL.NECK.NUM_LEVELS -1")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "") and not right[1].exists()
    assert result.stderr.startswith("error: MODEL.NECK.NUM_LEVELS is -1") and result.stderr.count("\n") == 1
