// Masks: COCO RLE in and out, and as pictures that are laid over the canvas.

// Run lengths of a compressed or plain RLE, in column order, outside first.
function runsOf(rle) {
  if (Array.isArray(rle.counts)) return rle.counts;
  const runs = [];
  let value = 0, shift = 0;
  for (const letter of rle.counts) {
    const bits = letter.charCodeAt(0) - 48;
    value += (bits & 31) * 2 ** shift;
    shift += 5;
    if (bits & 32) continue;
    if (bits & 16) value -= 2 ** shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
    value = shift = 0;
  }
  return runs;
}

// {x, y, width, height, bits}: the part of the mask that holds all of it, row by row; null where it is empty.
function decodeMask(rle) {
  const [height, width] = rle.size;
  const full = new Uint8Array(width * height);
  let place = 0, inside = false, left = width, top = height, right = -1, bottom = -1;
  for (const run of runsOf(rle)) {
    if (inside) {
      for (let i = place; i < place + run; i++) {
        const x = Math.floor(i / height), y = i % height;
        full[y * width + x] = 1;
        if (x < left) left = x;
        if (x > right) right = x;
        if (y < top) top = y;
        if (y > bottom) bottom = y;
      }
    }
    place += run;
    inside = !inside;
  }
  if (right < 0) return null;
  const box = { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  box.bits = new Uint8Array(box.width * box.height);
  for (let y = 0; y < box.height; y++) {
    const from = (top + y) * width + left;
    box.bits.set(full.subarray(from, from + box.width), y * box.width);
  }
  return box;
}

// The plain RLE of a mask of width x height bits, row by row.
function encodeMask(bits, width, height) {
  const counts = [];
  let run = 0, inside = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const bit = bits[y * width + x];
      if (bit !== inside) {
        counts.push(run);
        run = 0;
        inside = bit;
      }
      run++;
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

function covers(mask, x, y) {
  const column = Math.floor(x) - mask.x, row = Math.floor(y) - mask.y;
  if (column < 0 || row < 0 || column >= mask.width || row >= mask.height) return false;
  return mask.bits[row * mask.width + column] === 1;
}

// A picture of a mask: a fill that lets the surface through, and a solid edge.
function paintMask(mask, color, fill, edge) {
  const picture = document.createElement("canvas");
  picture.width = mask.width;
  picture.height = mask.height;
  const context = picture.getContext("2d");
  const data = context.createImageData(mask.width, mask.height);
  const at = (x, y) => x >= 0 && y >= 0 && x < mask.width && y < mask.height && mask.bits[y * mask.width + x];
  for (let y = 0; y < mask.height; y++) {
    for (let x = 0; x < mask.width; x++) {
      if (!at(x, y)) continue;
      let rim = false;
      for (let d = 1; d <= edge && !rim; d++) rim = !at(x - d, y) || !at(x + d, y) || !at(x, y - d) || !at(x, y + d);
      data.data.set([...color, rim ? 255 : fill], 4 * (y * mask.width + x));
    }
  }
  context.putImageData(data, 0, 0);
  return picture;
}
