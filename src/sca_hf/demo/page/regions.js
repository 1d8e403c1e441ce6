// Regions: their list, their captions on the picture, and what is saved of them.

const text = (result) => [result.caption].flat().join(" / ") || "(no words)";
const unsure = (result) => typeof result.confidence === "number" && result.confidence < 0.5;
const said = (result) => `${text(result)}${unsure(result) ? " (unsure)" : ""}`;
const percent = (share) => `${Math.round(100 * share)} %`;

function colorOf(index) {
  const palette = state.start.palette, turn = Math.floor(index / palette.length), pale = 1 - 0.75 ** turn;
  return palette[index % palette.length].map((value) => Math.round(value + (255 - value) * pale));
}

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(attributes, label, act) {
  const node = make("button", { type: "button", ...attributes }, label);
  node.addEventListener("click", act);
  return node;
}

function render() {
  const list = $("regions"), regions = shown();
  const held = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...regions.map(item));
  list.hidden = !regions.length;
  if (held) (list.querySelector(`[data-key="${CSS.escape(held)}"]`) || list.querySelector("button") || $("canvas")).focus();
  $("results").hidden = !regions.some((region) => region.result);
  element.querySelector('[data-act="undo"]').disabled = !state.past.length;
  element.querySelector('[data-act="clear"]').disabled = !regions.length;
  // Both benches keep their room, so that the picture stays where it is.
  for (const part of all("[data-for]")) {
    const other = part.dataset.for !== state.mode;
    if (part.classList.contains("tools")) part.inert = other;
    else part.hidden = other;
  }
  $("run").hidden = Boolean(state.job);
  $("cancel").hidden = !state.job;
  $("brushsize").hidden = state.mode !== "prompt" || state.tool !== "brush" || !state.image;
  $("canvas").classList.toggle("drag", state.mode === "prompt" && ["box", "brush"].includes(state.tool));
  light();
}

function item(region) {
  const mark = make("span", { class: "mark" }, String(region.id));
  mark.style.background = `rgb(${region.color.join(" ")})`;
  const words = region.result ? said(region.result) : region.failed ? "No answer yet" : "…";
  const pick = button(
    { class: "pick", "data-key": `pick${region.id}` }, mark,
    () => select(region.id),
  );
  pick.append(make("span", { class: "caption" }, region.pending && region.result ? `${words} …` : words));
  const row = make("li", { "data-region": region.id }, pick);
  for (const [event, id] of [["pointerenter", region.id], ["pointerleave", null], ["focusin", region.id], ["focusout", null]])
    row.addEventListener(event, (about) => {
      if (about.pointerType === "touch") return;
      state.lit = id;
      light();
    });
  if (state.mode === "prompt")
    row.append(button({ class: "remove quiet", "data-key": `remove${region.id}`, "aria-label": `Remove region ${region.id}`, title: "Remove" }, "✕", () => remove(region)));
  if (region.failed) row.append(button({ class: "again", "data-key": `again${region.id}` }, "Try again", () => describe(region)));
  if (region.result) row.append(numbers(region));
  return row;
}

function numbers(region) {
  const { score, masks } = region.result, sure = [score].flat()[0];
  const row = make("div", { class: "numbers" });
  if (unsure(region.result)) row.append(make("strong", { title: "The region is unlike the training data: the caption is a guess." }, "unsure: unlike anything it knows"));
  if (sure !== null && sure !== undefined)
    row.append(make("span", { title: `mean log-probability of the caption's tokens: ${sure.toFixed(2)}` }, `words ${percent(Math.exp(sure))}`));
  row.append(make("span", { title: "the model's own estimate of the mask's IoU" }, `outline ${percent(masks[region.chosen || 0].iou)}`));
  if (masks.length > 1) {
    const group = make("span", { role: "group", "aria-label": `Outlines of region ${region.id}`, title: "The model proposes several outlines: choose one" }, "which ");
    masks.forEach((mask, index) =>
      group.append(button(
        { "data-key": `mask${region.id}-${index}`, "aria-pressed": String(index === region.chosen), "aria-label": `Outline ${index + 1} of region ${region.id}, ${percent(mask.iou)}` },
        String(index + 1),
        () => {
          choose(region, index);
          render();
        },
      )),
    );
    row.append(group);
  }
  return row;
}

// The selected region, or the one that is pointed at, is lit in list and picture and has its caption on it.
const litRegion = () => shown().find((region) => region.id === (state.lit ?? state.active[state.mode])) || null;

function select(id) {
  state.active[state.mode] = id;
  state.lit = null;
  light();
  const region = litRegion();
  if (region?.result) status(`Region ${region.id}: ${said(region.result)}`);
}

function light() {
  const lit = litRegion();
  for (const row of all("[data-region]")) row.classList.toggle("lit", Number(row.dataset.region) === lit?.id);
  const list = $("regions"), row = list.querySelector(".lit");
  // The list alone scrolls, never the page.
  if (row && list.scrollHeight > list.clientHeight && !list.matches(":hover, :focus-within"))
    list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 3;
  stage.draw();
  showBubble(lit);
}

function showBubble(region) {
  const bubble = $("bubble");
  bubble.hidden = !region?.result;
  if (bubble.hidden) return;
  bubble.textContent = `${region.id}  ${said(region.result)}`;
  bubble.style.borderColor = `rgb(${region.color.join(" ")})`;
  const frame = $("frame").getBoundingClientRect(), canvas = $("canvas").getBoundingClientRect();
  const scale = canvas.width / $("canvas").width;
  const mask = region.mask || { x: 0, y: 0, width: $("canvas").width, height: 0 };
  const middle = canvas.left - frame.left + (mask.x + mask.width / 2) * scale;
  const top = canvas.top - frame.top + mask.y * scale, bottom = top + mask.height * scale;
  const { offsetWidth: width, offsetHeight: height } = bubble;
  const above = top - height - 6, below = bottom + 6;
  // Above the region, else below it, else over its edge.
  const y = above >= 4 ? above : below + height <= frame.height - 4 ? below : 4;
  bubble.style.left = `${Math.min(Math.max(4, middle - width / 2), Math.max(4, frame.width - width - 6))}px`;
  bubble.style.top = `${y}px`;
}

// Results to keep

function records() {
  return shown().filter((region) => region.result).map((region) => {
    if (region.record) {
      const { view, spot, ...record } = region.record;
      return record;
    }
    const { mask, iou, box, area } = region.result.masks[region.chosen];
    const prompt = asked(region);
    const bbox = box ? [box[0], box[1], box[2] - box[0], box[3] - box[1]] : [0, 0, 0, 0];
    return { segmentation: mask, area, bbox, predicted_iou: iou, point_coords: prompt.points, box_prompt: prompt.box, caption: text(region.result), score: [region.result.score].flat()[0], confidence: region.result.confidence };
  });
}

function save(name, parts, type) {
  const link = make("a", { href: URL.createObjectURL(new Blob(parts, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function download(kind) {
  const kept = records();
  if (kind === "json") return save("regions.json", [JSON.stringify(kept, null, 1)], "application/json");
  if (kind === "coco") {
    const image = { id: 1, file_name: "image", width: state.image.width, height: state.image.height };
    const annotations = kept.map((record, index) => ({ id: index + 1, image_id: 1, category_id: 1, iscrowd: 0, ...record }));
    const categories = [{ id: 1, name: "object", supercategory: "object" }];
    return save("coco.json", [JSON.stringify({ images: [image], annotations, categories })], "application/json");
  }
  const regions = kept.map(({ caption, segmentation }) => ({ caption, segmentation }));
  const answer = await ask("draw", () => ({ regions }), "Drawing …", () => download(kind));
  if (answer && !answer.error) save("regions.png", [Uint8Array.from(atob(answer.png), (letter) => letter.charCodeAt(0))], "image/png");
}
