// The canvas: what is drawn on it, and what a pointer or the keyboard does there. Coordinates are those of the shown
// picture, `view`; the server is told pixels of the original.

function makeStage(canvas, page) {
  const context = canvas.getContext("2d");
  const stage = { picture: null, corner: null, far: null, cross: null, stroke: null, badges: [] };

  stage.show = (picture, width, height) => {
    stage.picture = picture;
    canvas.width = width;
    canvas.height = height;
    canvas.style.setProperty("--ratio", width / height);
    stage.corner = stage.far = stage.stroke = stage.cross = null;
    stage.draw();
  };

  // Pixels of the canvas in one of the window, so that lines and markers look alike on every screen.
  const unit = () => canvas.width / (canvas.clientWidth || canvas.width);

  stage.draw = () => {
    if (!stage.picture) return;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(stage.picture, 0, 0, canvas.width, canvas.height);
    const line = 1.6 * unit();
    const regions = [...page.regions()].sort((a, b) => (b.area || 0) - (a.area || 0));
    const lit = page.lit();
    if (regions.some((region) => region.mask)) {
      context.fillStyle = "rgb(0 0 0 / 0.22)";
      context.fillRect(0, 0, canvas.width, canvas.height);
      for (const region of regions) if (region.mask) drawSurface(region.mask);
    }
    for (const region of regions) {
      if (!region.mask) continue;
      const strong = region.id === lit;
      const key = strong ? "strong" : "calm";
      region.paint ??= {};
      region.paint[key] ??= paintMask(region.mask, region.color, strong ? 84 : 46, Math.max(1, Math.round(line * (strong ? 1.8 : 1))));
      context.drawImage(region.paint[key], region.mask.x, region.mask.y);
    }
    for (const region of regions) drawPrompt(region, line);
    drawNames(regions.reverse());
    if (stage.stroke) drawBits(stage.stroke, "rgb(255 210 60 / 0.6)");
    if (stage.corner) drawBox([...stage.corner, ...(stage.far || stage.corner)], "#ffd23c", line);
    if (stage.cross && document.activeElement === canvas) drawCross(line);
  };

  // The surface of a region in its own light, in a picture that is dimmed around it.
  function drawSurface(mask) {
    if (!mask.surface) {
      mask.surface = paintMask(mask, [0, 0, 0], 255, 0);
      const inner = mask.surface.getContext("2d");
      inner.globalCompositeOperation = "source-in";
      inner.drawImage(stage.picture, mask.x, mask.y, mask.width, mask.height, 0, 0, mask.width, mask.height);
    }
    context.drawImage(mask.surface, mask.x, mask.y);
  }

  // A badge with its number in each region; of a few regions also what they are, where that hides no other badge.
  function drawNames(regions) {
    const size = unit() * (regions.length > 30 ? 0.75 : 1), height = 20 * size, pad = 5 * size;
    context.font = `600 ${13 * size}px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif`;
    context.textBaseline = "middle";
    const wide = (words) => context.measureText(words).width + 2 * pad;
    const apart = (a, b) => a.x + a.width < b.x || b.x + b.width < a.x || a.y + height < b.y || b.y + height < a.y;
    const fit = (at, width) => ({
      x: Math.min(Math.max(at[0] - width / 2, 0), canvas.width - width),
      y: Math.min(Math.max(at[1] - height / 2, 0), canvas.height - height), width,
    });
    stage.badges = regions.filter((region) => region.spot).map((region) => {
      const marked = region.prompt?.points.some(([x, y]) => Math.hypot(x - region.spot[0], y - region.spot[1]) < 20 * size);
      const at = [region.spot[0], region.spot[1] - (marked ? 22 * size : 0)], width = Math.max(height, wide(String(region.id)));
      return { region, at, badge: width, ...fit(at, width) };
    });
    // Those of regions with one middle stand side by side.
    stage.badges.forEach((one, index) => {
      const before = stage.badges.slice(0, index), meets = () => before.some((other) => !apart(one, other));
      for (let step = 0; step < 4 && meets(); step++) Object.assign(one, fit([one.x + 1.6 * one.badge, one.at[1]], one.badge));
      one.at = [one.x + one.badge / 2, one.at[1]];
    });
    for (const one of stage.badges) {
      // The words of the selected region are on the picture anyway, in full.
      const few = regions.length <= (canvas.clientWidth < 500 ? 3 : 8);
      const words = few && one.region.id !== page.chosen() ? page.words(one.region) : "";
      const width = one.badge + wide(words), leftwards = one.x + width > canvas.width;
      const place = { ...one, x: leftwards ? one.x + one.badge - width : one.x, width };
      if (words && stage.badges.every((other) => other === one || apart(place, other))) Object.assign(one, place, { words, leftwards });
    }
    for (const { region, x, y, width, badge, words, leftwards } of stage.badges) {
      const number = leftwards ? x + width - badge : x;
      const color = `rgb(${region.color.join(" ")})`;
      for (const [style, grow, left, length] of [["#12141a", 1.5 * size, x, width], [color, 0, number, badge]]) {
        context.fillStyle = style;
        context.beginPath();
        context.roundRect(left - grow, y - grow, length + 2 * grow, height + 2 * grow, 5 * size);
        context.fill();
      }
      context.fillStyle = "#12141a";
      context.textAlign = "center";
      context.fillText(String(region.id), number + badge / 2, y + height / 2 + size);
      context.fillStyle = "#f5f6f8";
      context.textAlign = "left";
      if (words) context.fillText(words, (leftwards ? x : x + badge) + pad, y + height / 2 + size);
    }
  }

  function drawPrompt(region, line) {
    const prompt = region.prompt;
    if (!prompt) return;
    const color = `rgb(${region.color.join(" ")})`;
    if (prompt.box) drawBox(prompt.box, color, line, true);
    if (prompt.bits && !region.mask) drawBits(prompt.bits, color);
    prompt.points.forEach(([x, y], index) => drawMarker(x, y, prompt.labels[index] ? color : "#e13c3c", prompt.labels[index]));
  }

  function drawBox([x1, y1, x2, y2], color, line, dashed = false) {
    context.save();
    context.setLineDash(dashed ? [6 * line, 4 * line] : []);
    for (const [style, width] of [["#12141a", line + 2], [color, line]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(Math.min(x1, x2), Math.min(y1, y2), Math.abs(x2 - x1), Math.abs(y2 - y1));
    }
    context.restore();
  }

  function drawMarker(x, y, color, inside) {
    const radius = 8 * unit(), arm = radius * 0.5;
    for (const [style, size] of [["#12141a", radius + 1.5], ["#fff", radius], [color, radius * 0.78]]) {
      context.fillStyle = style;
      context.beginPath();
      context.arc(x, y, size, 0, 7);
      context.fill();
    }
    context.strokeStyle = inside ? "#12141a" : "#fff";
    context.lineWidth = radius / 4;
    context.beginPath();
    context.moveTo(x - arm, y);
    context.lineTo(x + arm, y);
    if (inside) {
      context.moveTo(x, y - arm);
      context.lineTo(x, y + arm);
    }
    context.stroke();
  }

  function drawBits(bits, color) {
    context.fillStyle = color;
    for (let y = 0; y < canvas.height; y++) {
      for (let x = 0, from = -1; x <= canvas.width; x++) {
        const bit = x < canvas.width && bits[y * canvas.width + x];
        if (bit && from < 0) from = x;
        if (!bit && from >= 0) {
          context.fillRect(from, y, x - from, 1);
          from = -1;
        }
      }
    }
  }

  function drawCross(line) {
    const { x, y } = stage.cross, arm = canvas.width / 24;
    for (const [style, width] of [["#12141a", line + 3], ["#ffd23c", line + 0.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
        context.moveTo(x + dx * arm * 0.25, y + dy * arm * 0.25);
        context.lineTo(x + dx * arm, y + dy * arm);
      }
      context.stroke();
    }
  }

  function place(event) {
    const bounds = canvas.getBoundingClientRect();
    const clamp = (value, max) => Math.min(Math.max(value, 0), max);
    return {
      x: clamp(((event.clientX - bounds.left) / bounds.width) * canvas.width, canvas.width - 0.01),
      y: clamp(((event.clientY - bounds.top) / bounds.height) * canvas.height, canvas.height - 0.01),
    };
  }

  function brush(from, to) {
    const radius = (page.brushWidth() / 2) * (canvas.width / canvas.getBoundingClientRect().width);
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      const cx = from.x + ((to.x - from.x) * step) / steps, cy = from.y + ((to.y - from.y) * step) / steps;
      for (let y = Math.max(0, Math.floor(cy - radius)); y <= Math.min(canvas.height - 1, cy + radius); y++) {
        for (let x = Math.max(0, Math.floor(cx - radius)); x <= Math.min(canvas.width - 1, cx + radius); x++) {
          if ((x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2 <= radius * radius) stage.stroke[y * canvas.width + x] = 1;
        }
      }
    }
  }

  // The smallest region under a place: what lies in something else can be reached.
  stage.regionAt = ({ x, y }) =>
    page.regions().filter((r) => r.mask && covers(r.mask, x, y)).sort((a, b) => a.area - b.area)[0] || null;

  stage.badgeAt = ({ x, y }) => {
    const reach = 6 * unit();
    const hit = stage.badges.find((one) => x > one.x - reach && x < one.x + one.width + reach && y > one.y - reach && y < one.y + 20 * unit() + reach);
    return hit ? hit.region : null;
  };

  // What a click or Enter selects there: in everything mode any region, else one whose number is hit.
  function selected(at, refine) {
    if (page.mode() === "anything") return { region: stage.badgeAt(at) || stage.regionAt(at) };
    const region = ["point", "negative"].includes(page.tool()) && !refine && !page.refining() ? stage.badgeAt(at) : null;
    return region && { region };
  }

  function finishBox(corner, far) {
    const box = [Math.min(corner.x, far.x), Math.min(corner.y, far.y), Math.max(corner.x, far.x), Math.max(corner.y, far.y)];
    stage.corner = stage.far = null;
    if (box[2] - box[0] >= 1 && box[3] - box[1] >= 1) page.addBox(box);
    else stage.draw();
  }

  let down = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button > 2) return;
    const at = place(event), selects = event.button !== 2 && selected(at, event.shiftKey);
    const tool = selects || page.mode() === "anything" ? "select" : event.button === 2 ? "negative" : page.tool();
    down = { at, last: at, tool, refine: event.shiftKey, selects };
    stage.cross = null;
    if (down.tool === "brush") {
      stage.stroke = new Uint8Array(canvas.width * canvas.height);
      brush(at, at);
    }
    if (down.tool === "box" && !stage.corner) {
      stage.corner = [at.x, at.y];
      down.first = true;
    }
    if (down.tool === "box" || down.tool === "brush") canvas.setPointerCapture(event.pointerId);
    stage.draw();
  });

  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    if (down && down.tool === "brush") {
      brush(down.last, at);
      down.last = at;
      stage.draw();
    } else if (stage.corner) {
      stage.far = [at.x, at.y];
      stage.draw();
    } else if (event.pointerType !== "touch") page.hover(stage.regionAt(at));
  });

  canvas.addEventListener("pointerup", (event) => {
    if (!down) return;
    const at = place(event), { tool, refine, first, selects } = down;
    const moved = Math.hypot(at.x - down.at.x, at.y - down.at.y) * (canvas.getBoundingClientRect().width / canvas.width);
    down = null;
    if (tool === "brush") {
      const bits = stage.stroke;
      stage.stroke = null;
      page.addStroke(bits);
    } else if (tool === "box") {
      // A drag gives both corners, a click the first, another click the second.
      if (!first || moved > 4) finishBox({ x: stage.corner[0], y: stage.corner[1] }, at);
    } else if (tool === "select") {
      if (selects) page.select(selects.region);
    } else page.addPoint([at.x, at.y], tool === "point" ? 1 : 0, refine);
  });

  canvas.addEventListener("pointercancel", () => {
    down = stage.corner = stage.far = stage.stroke = null;
    stage.draw();
  });
  canvas.addEventListener("pointerleave", () => page.hover(null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("focus", () => stage.draw());
  canvas.addEventListener("blur", () => stage.draw());

  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = (event.shiftKey ? 10 : 2) * Math.max(1, canvas.width / 300);
    if (event.key in steps) {
      stage.cross ??= { x: canvas.width / 2, y: canvas.height / 2 };
      stage.cross.x = Math.min(Math.max(stage.cross.x + steps[event.key][0] * step, 0), canvas.width - 0.01);
      stage.cross.y = Math.min(Math.max(stage.cross.y + steps[event.key][1] * step, 0), canvas.height - 0.01);
      if (stage.corner) stage.far = [stage.cross.x, stage.cross.y];
      page.hover(stage.regionAt(stage.cross));
    } else if (event.key === "Enter" || event.key === " ") {
      stage.cross ??= { x: canvas.width / 2, y: canvas.height / 2 };
      const selects = selected(stage.cross, event.shiftKey);
      if (selects) page.select(selects.region);
      else if (page.tool() === "box") {
        if (stage.corner) finishBox({ x: stage.corner[0], y: stage.corner[1] }, stage.cross);
        else stage.corner = [stage.cross.x, stage.cross.y];
      } else if (page.tool() === "brush") {
        stage.stroke = new Uint8Array(canvas.width * canvas.height);
        brush(stage.cross, stage.cross);
        const bits = stage.stroke;
        stage.stroke = null;
        page.addStroke(bits);
      } else page.addPoint([stage.cross.x, stage.cross.y], page.tool() === "point" ? 1 : 0, event.shiftKey);
    } else if (event.key === "Escape" && stage.corner) stage.corner = stage.far = null;
    else return;
    event.preventDefault();
    stage.draw();
  });

  return stage;
}
