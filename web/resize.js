// Resizing as Pillow does it, to the bit: a triangle filter as wide as the scale, columns first, rounded to bytes in
// between.
"use strict";

const ONE = 2 ** 22; // weights are whole numbers, of which so many are 1

/** Weights of the input pixels that each output pixel is a mean of, in parts of ONE: [{start, weights}]. */
function taps(from, to) {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.floor(center - reach + 0.5));
    const end = Math.min(from, Math.floor(center + reach + 0.5));
    const weights = [];
    for (let x = start; x < end; x++) weights.push(Math.max(0, 1 - Math.abs((x + 0.5 - center) / reach)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { start, weights: weights.map((w) => Math.floor(w / sum * ONE + 0.5)) };
  });
}

/** Resize along one axis; `at(line, i)` and `to(line, i)` are offsets of pixels in `source` and in the result. */
function resizeAxis(source, result, lines, from, to, at, put) {
  taps(from, to).forEach(({ start, weights }, i) => {
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = ONE / 2;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * source[at(line, start + k) + channel];
        result[put(line, i) + channel] = Math.floor(sum / ONE);
      }
    }
  });
}

/** From RGB bytes of width × height pixels to newWidth × newHeight. */
function resize(pixels, width, height, newWidth, newHeight) {
  const wide = new Uint8ClampedArray(height * newWidth * 3);
  resizeAxis(pixels, wide, height, width, newWidth, (y, x) => 3 * (y * width + x), (y, x) => 3 * (y * newWidth + x));
  const result = new Uint8ClampedArray(newHeight * newWidth * 3);
  const offset = (x, y) => 3 * (y * newWidth + x);
  resizeAxis(wide, result, newWidth, height, newHeight, offset, offset);
  return result;
}
