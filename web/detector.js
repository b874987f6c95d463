// An exported detector in the browser: what `sparsercnn_runtime.OnnxDetector` does, in JavaScript.
"use strict";

function bytesOf(parts) {
  const texts = parts.map(atob);
  const bytes = new Uint8Array(texts.reduce((sum, text) => sum + text.length, 0));
  let position = 0;
  for (const text of texts) for (let i = 0; i < text.length; i++) bytes[position++] = text.charCodeAt(i);
  return bytes;
}

/** Height and width with the shorter side minSize, or less where the longer one would exceed maxSize. */
function inputSize(height, width, minSize, maxSize) {
  if (!minSize) return [height, width];
  const scale = minSize / Math.min(height, width);
  let size = height < width ? [minSize, scale * width] : [scale * height, minSize];
  const longest = Math.max(...size);
  if (longest > maxSize) size = size.map((side) => side * (maxSize / longest));
  return size.map((side) => Math.floor(side + 0.5));
}

class Detector {
  /** Opens the model of model.js with the runtime of runtime.js. */
  static async open() {
    // Addresses of what others would get from a server.
    const address = (parts, type) => URL.createObjectURL(new Blob([bytesOf(parts)], { type }));
    const ort = await import(address(RUNTIME.module, "text/javascript"));
    ort.env.wasm.numThreads = 1; // pages from a folder share no memory between threads
    ort.env.wasm.wasmPaths = {
      mjs: address(RUNTIME.loader, "text/javascript"),
      wasm: address(RUNTIME.wasm, "application/wasm"),
    };
    const session = await ort.InferenceSession.create(bytesOf(MODEL.parts), { executionProviders: ["wasm"] });
    return new Detector(ort, session, MODEL.metadata);
  }

  constructor(ort, session, metadata) {
    Object.assign(this, { ort, session, metadata });
  }

  /** Detections of any score, best first, on RGB bytes: [{classId, name, score, box: [x0, y0, x1, y1]}]. */
  async detect(pixels, width, height) {
    const { min_size, max_size, divisor, class_names } = this.metadata;
    const [newHeight, newWidth] = inputSize(height, width, min_size, max_size);
    const resized = newWidth === width && newHeight === height ? pixels : resize(pixels, width, height, newWidth, newHeight);
    const rows = Math.ceil(newHeight / divisor) * divisor, columns = Math.ceil(newWidth / divisor) * divisor;
    const padded = new Uint8Array(rows * columns * 3);
    for (let y = 0; y < newHeight; y++) padded.set(resized.subarray(3 * y * newWidth, 3 * (y + 1) * newWidth), 3 * y * columns);
    const { boxes, scores, classes } = await this.session.run({
      images: new this.ort.Tensor("uint8", padded, [1, rows, columns, 3]),
      sizes: new this.ort.Tensor("int64", BigInt64Array.from([BigInt(newHeight), BigInt(newWidth)]), [1, 2]),
    });
    const limits = [width, height, width, height];
    const scales = [width / newWidth, height / newHeight, width / newWidth, height / newHeight];
    return Array.from(scores.data, (score, i) => {
      const box = scales.map((scale, k) => Math.min(Math.max(boxes.data[4 * i + k] * scale, 0), limits[k]));
      const classId = Number(classes.data[i]);
      return { classId, name: class_names[classId], score, box };
    }).filter(({ box }) => box[2] > box[0] && box[3] > box[1]);
  }
}
