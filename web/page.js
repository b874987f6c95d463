// The page: pictures in, boxes out. Nothing leaves the browser.
"use strict";

const MAX_BYTES = 20 * 2 ** 20, MAX_PIXELS = 40e6, MAX_PICTURES = 16;
const COLORS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000", "#f032e6"];
const element = (id) => document.getElementById(id);
const say = (text) => { element("message").textContent = text; };

let detector = null;
let found = []; // {name, image, detections} of each picture

/** RGB bytes of a picture file; throws an Error with one line that says what is wrong. */
async function readPicture(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} is larger than ${MAX_BYTES / 2 ** 20} MB`);
  const image = new Image();
  const address = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => { image.onload = resolve; image.onerror = reject; image.src = address; });
  } catch {
    URL.revokeObjectURL(address);
    throw new Error(`${file.name} is no picture that this browser can read`);
  }
  const { naturalWidth: width, naturalHeight: height } = image; // known before the pixels are decoded
  if (width * height > MAX_PIXELS) {
    URL.revokeObjectURL(address);
    throw new Error(`${file.name} has ${width}×${height} pixels, more than ${MAX_PIXELS / 1e6} million`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < rgba.length; i += 4) for (let k = 0; k < 3; k++) pixels[j++] = rgba[i + k];
  return { image, width, height, pixels };
}

async function look(files) {
  const problems = files.length > MAX_PICTURES ? [`only the first ${MAX_PICTURES} pictures are looked at`] : [];
  found = [];
  for (const file of [...files].slice(0, MAX_PICTURES)) {
    say(`Looking at ${file.name} …`);
    try {
      const { image, width, height, pixels } = await readPicture(file);
      found.push({ name: file.name, image, detections: await detector.detect(pixels, width, height) });
    } catch (error) {
      problems.push(error.message);
    }
  }
  show();
  say(problems.join("\n"));
}

const kept = ({ detections }) => detections.filter((d) => d.score > Number(element("threshold").value));

function show() {
  element("threshold-value").textContent = Number(element("threshold").value).toFixed(2);
  element("found").replaceChildren(...found.map(figure));
  const rows = found.flatMap((f) => kept(f).map((d) => [f.name, d.name, d.score.toFixed(3), ...d.box.map((x) => x.toFixed(1))]));
  element("table").replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  }));
  element("download").disabled = !found.length;
}

function figure(f) {
  const canvas = document.createElement("canvas"), { naturalWidth: width, naturalHeight: height } = f.image;
  const scale = Math.max(1, Math.ceil(480 / Math.max(width, height))); // labels need room
  canvas.width = width * scale;
  canvas.height = height * scale;
  const context = canvas.getContext("2d");
  context.drawImage(f.image, 0, 0, canvas.width, canvas.height);
  const line = Math.max(2, canvas.width / 300);
  context.lineWidth = line;
  context.font = `${6 * line}px sans-serif`;
  for (const d of kept(f)) {
    const [x0, y0, x1, y1] = d.box.map((x) => x * scale);
    context.strokeStyle = context.fillStyle = COLORS[d.classId % COLORS.length];
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const label = `${d.name} ${Math.round(100 * d.score)}%`;
    context.fillRect(x0, y0, context.measureText(label).width + 2 * line, 8 * line);
    context.fillStyle = "white";
    context.fillText(label, x0 + line, y0 + 6 * line);
  }
  const caption = document.createElement("figcaption");
  caption.textContent = `${f.name}: ${kept(f).length} objects`;
  const result = document.createElement("figure");
  result.append(canvas, caption);
  return result;
}

/** COCO results; an image_id is the name of a picture. */
function results() {
  return found.flatMap((f) => kept(f).map(({ classId, score, box: [x0, y0, x1, y1] }) => ({
    image_id: f.name, category_id: classId, bbox: [x0, y0, x1 - x0, y1 - y0], score,
  })));
}

async function start() {
  try {
    detector = await Detector.open();
  } catch (error) {
    say(`The model cannot be opened: ${error.message}`);
    return;
  }
  const { class_names: names, threshold } = detector.metadata;
  element("title").textContent = document.title = `Detect ${names.slice(0, 5).join(", ")}${names.length > 5 ? ", …" : ""}`;
  element("threshold").value = threshold;
  element("threshold").addEventListener("input", show);
  element("files").addEventListener("change", (event) => look(event.target.files));
  element("drop").addEventListener("dragover", (event) => { event.preventDefault(); element("drop").className = "over"; });
  element("drop").addEventListener("dragleave", () => { element("drop").className = ""; });
  element("drop").addEventListener("drop", (event) => {
    event.preventDefault();
    element("drop").className = "";
    look(event.dataTransfer.files);
  });
  element("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([JSON.stringify(results(), null, 1)], { type: "application/json" }));
    Object.assign(document.createElement("a"), { href: address, download: "detections.json" }).click();
  });
  show();
  say("");
}
