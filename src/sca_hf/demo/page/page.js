// The page: its state, its lists and controls, and its calls of the server. `element` and `server` are Gradio's.

const $ = (name) => element.querySelector(`[data-id="${name}"]`);
const all = (selector) => [...element.querySelectorAll(selector)];
const state = {
  mode: "prompt", tool: "point", start: null, image: null, model: null, busy: 0,
  prompt: [], anything: [], active: null, lit: null, next: 0, past: [], job: null,
};
const shown = () => (state.mode === "prompt" ? state.prompt : state.anything);

const stage = makeStage($("canvas"), {
  regions: shown, lit: () => state.lit ?? (state.mode === "prompt" ? state.active : null), mode: () => state.mode,
  tool: () => state.tool, brushWidth: () => Number($("brushwidth").value), addPoint, addBox, addStroke, hover,
});

async function call(name, payload) {
  say(null);
  state.busy++;
  $("busy").hidden = !state.image;
  try {
    const answer = await server[name](payload);
    if (answer && answer.error) throw new Error(answer.error);
    return answer;
  } catch (error) {
    say(error.message && !/fetch|JSON|undefined/i.test(error.message) ? error.message : "The server does not answer; please try again.");
    return null;
  } finally {
    state.busy--;
    $("busy").hidden = state.busy === 0 || !state.image;
  }
}

function say(message) {
  $("error").textContent = message || "";
  $("error").hidden = !message;
}

function status(text) {
  $("status").textContent = text;
}

// Pictures

async function openPicture(payload) {
  const answer = await call("open_picture", { ...payload, model: state.model });
  if (!answer) return;
  const picture = new Image();
  picture.src = answer.view;
  await picture.decode();
  state.image = { id: answer.image_id, width: answer.width, height: answer.height };
  state.prompt = [];
  state.anything = [];
  state.past = [];
  state.active = state.lit = null;
  state.next = 0;
  $("drop").hidden = true;
  $("another").hidden = $("canvas").hidden = false;
  stage.show(picture);
  render();
  status(state.mode === "prompt" ? "Click on something." : "Ready to caption everything.");
}

function readFile(file) {
  if (!file) return;
  if (file.size > state.start.limits.bytes) {
    say(`This file is too large; pictures of up to ${Math.floor(state.start.limits.bytes / 2 ** 20)} MB are taken.`);
    return;
  }
  const reader = new FileReader();
  reader.onload = () => openPicture({ data: reader.result.slice(reader.result.indexOf(",") + 1) });
  reader.onerror = () => say("This file cannot be read.");
  reader.readAsDataURL(file);
}

// Regions that are pointed at

function newRegion() {
  const region = { id: ++state.next, color: colorOf(state.next - 1), prompt: { points: [], labels: [], box: null, bits: null } };
  state.prompt.push(region);
  state.active = region.id;
  return region;
}

function colorOf(index) {
  const palette = state.start.palette, turn = Math.floor(index / palette.length), pale = 1 - 0.75 ** turn;
  return palette[index % palette.length].map((value) => Math.round(value + (255 - value) * pale));
}

const active = () => state.prompt.find((region) => region.id === state.active) || null;

// Prompts and results as they are now; a result is never changed, only replaced.
function remember() {
  const copy = state.prompt.map((r) => ({ ...r, prompt: { ...r.prompt, points: [...r.prompt.points], labels: [...r.prompt.labels] } }));
  state.past.push({ regions: copy, active: state.active });
  if (state.past.length > 100) state.past.shift();
}

function target(refine) {
  return (refine || $("refine").checked) && active() ? active() : newRegion();
}

function addPoint(point, label, refine) {
  if (label === 0 && !active()) return say("Point at something first, then at what does not belong to it.");
  remember();
  const region = target(refine || label === 0);
  region.prompt.points.push(point);
  region.prompt.labels.push(label);
  describe(region);
}

function addBox(box) {
  remember();
  const region = target(false);
  region.prompt.box = box;
  describe(region);
}

function addStroke(bits) {
  remember();
  const region = target(false);
  region.prompt.bits = region.prompt.bits ? bits.map((bit, i) => bit | region.prompt.bits[i]) : bits;
  describe(region);
}

function asked(region) {
  const { prompt } = region, canvas = $("canvas");
  const sx = state.image.width / canvas.width, sy = state.image.height / canvas.height;
  const scaled = ([x, y]) => [x * sx, y * sy];
  return {
    points: prompt.points.map(scaled), labels: prompt.labels,
    box: prompt.box && [...scaled(prompt.box.slice(0, 2)), ...scaled(prompt.box.slice(2))],
    mask: prompt.bits && encodeMask(prompt.bits, canvas.width, canvas.height),
  };
}

async function describe(region) {
  const turn = (region.turn = (region.turn || 0) + 1), image = state.image;
  region.pending = true;
  render();
  const answer = await call("describe", { image_id: image.id, model: state.model, region: asked(region), options: options() });
  // Of several questions about a region only the last one counts, and none about another picture.
  if (turn !== region.turn || image !== state.image) return;
  region.pending = false;
  if (answer) take(region, answer);
  else if (!region.result) state.prompt = state.prompt.filter((other) => other !== region);
  render();
  if (answer) status(`Region ${region.id}: ${text(region.result)}`);
}

function take(region, result) {
  region.result = result;
  const ious = result.masks.map((mask) => mask.iou);
  choose(region, ious.indexOf(Math.max(...ious)));
}

function choose(region, index) {
  region.chosen = index;
  region.mask = decodeMask(region.result.masks[index].view);
  region.area = region.mask ? region.mask.bits.reduce((sum, bit) => sum + bit, 0) : 0;
  region.paint = null;
}

const text = (result) => [result.caption].flat().join(" / ") || "(no words)";

function undo() {
  const before = state.past.pop();
  if (!before) return;
  for (const region of state.prompt) region.turn = (region.turn || 0) + 1;
  state.prompt = before.regions.map((region) => ({ ...region, pending: false }));
  state.active = before.active;
  render();
  for (const region of state.prompt) if (!region.result) describe(region);
  status("Undone.");
}

function clear() {
  if (state.mode === "anything") state.anything = [];
  else {
    remember();
    for (const region of state.prompt) region.turn = (region.turn || 0) + 1;
    state.prompt = [];
    state.active = null;
  }
  render();
  status("Cleared.");
}

// Everything in the picture

async function captionEverything() {
  if (!state.image) return say("Choose a picture first.");
  if (state.job) return;
  const image = state.image, settings = {};
  for (const input of all("[data-set]")) settings[input.dataset.set] = input.type === "checkbox" ? input.checked : Number(input.value);
  state.job = Math.random().toString(36).slice(2);
  $("run").disabled = true;
  $("progress").hidden = false;
  const timer = setInterval(showProgress, 700);
  const answer = await call("everything", {
    image_id: image.id, model: state.model, settings, options: options(), job: state.job, session: state.start.session,
  });
  clearInterval(timer);
  state.job = null;
  $("run").disabled = false;
  $("progress").hidden = true;
  if (!answer || image !== state.image) return;
  state.anything = answer.regions.map((record, index) => {
    const region = { id: index + 1, color: colorOf(index), record };
    region.mask = decodeMask(record.view);
    region.area = record.area;
    region.result = { caption: record.caption, score: record.score, masks: [{ iou: record.predicted_iou }] };
    return region;
  });
  state.lit = null;
  render();
  status(`${state.anything.length} regions.` + (state.anything.length ? "" : " Lower thresholds find more."));
}

async function showProgress() {
  const job = state.job;
  const news = job && (await server.progress({ job }).catch(() => null));
  if (!news || job !== state.job) return;
  $("progressbar").value = news.fraction;
  $("progresstext").textContent = news.text;
}

// Lists

function render() {
  const list = $("regions"), regions = shown();
  const focused = document.activeElement && list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...regions.map(item));
  if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  $("downloads").hidden = !regions.some((region) => region.result);
  element.querySelector('[data-act="undo"]').disabled = !state.past.length;
  element.querySelector('[data-act="clear"]').disabled = !regions.length;
  $("tools").hidden = state.mode !== "prompt";
  $("controls").hidden = state.mode !== "anything";
  $("brushsize").hidden = state.tool !== "brush";
  $("canvas").classList.toggle("drag", state.mode === "prompt" && ["box", "brush"].includes(state.tool));
  light();
}

function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function item(region) {
  const mark = make("span", { class: "mark" }, String(region.id));
  mark.style.background = `rgb(${region.color.join(" ")})`;
  const words = region.result ? text(region.result) : "…";
  const pick = make("button", { type: "button", class: "pick", "data-key": `pick${region.id}`, "aria-label": `Region ${region.id}: ${words}` }, mark, make("span", { class: "caption" }, region.pending ? `${words} …` : words));
  pick.addEventListener("click", () => {
    state.active = region.id;
    light();
  });
  const row = make("li", { "data-region": region.id }, pick);
  for (const [event, id] of [["pointerenter", region.id], ["pointerleave", null], ["focusin", region.id], ["focusout", null]])
    row.addEventListener(event, () => {
      state.lit = id;
      light();
    });
  if (state.mode === "prompt") {
    const remove = make("button", { type: "button", class: "remove", "aria-label": `Remove region ${region.id}`, title: "Remove" }, "✕");
    remove.addEventListener("click", () => {
      remember();
      region.turn = (region.turn || 0) + 1;
      state.prompt = state.prompt.filter((other) => other !== region);
      state.lit = null;
      render();
    });
    row.append(remove);
  }
  if (region.result) row.append(numbers(region));
  return row;
}

function numbers(region) {
  const { score, masks } = region.result, iou = masks[region.chosen || 0].iou;
  const sure = [score].flat()[0];
  const row = make("div", { class: "numbers" });
  if (sure !== null && sure !== undefined) row.append(make("span", { title: "mean log-probability of the caption's tokens" }, `score ${sure.toFixed(2)}`));
  row.append(make("span", { title: "the model's own estimate of the mask's IoU" }, `IoU ${iou.toFixed(2)}`));
  if (masks.length > 1) {
    const group = make("span", { role: "group", "aria-label": `Masks of region ${region.id}` }, "mask ");
    masks.forEach((mask, index) => {
      const button = make("button", { type: "button", "data-key": `mask${region.id}-${index}`, "aria-pressed": String(index === region.chosen), "aria-label": `Mask ${index + 1} of region ${region.id}, IoU ${mask.iou.toFixed(2)}` }, String(index + 1));
      button.addEventListener("click", () => {
        choose(region, index);
        render();
      });
      group.append(button);
    });
    row.append(group);
  }
  return row;
}

function light() {
  const lit = state.lit ?? (state.mode === "prompt" ? state.active : null);
  for (const row of all("[data-region]")) row.classList.toggle("lit", Number(row.dataset.region) === lit);
  stage.draw();
}

function hover(region, event) {
  const id = region ? region.id : null;
  const bubble = $("bubble");
  if (id !== state.lit) {
    state.lit = id;
    light();
    const list = $("regions"), row = list.querySelector(".lit");
    // The list alone scrolls, never the page.
    if (row && list.scrollHeight > list.clientHeight) list.scrollTop = row.offsetTop - list.offsetTop - list.clientHeight / 3;
  }
  bubble.hidden = !region || !region.result;
  if (bubble.hidden) return;
  bubble.textContent = text(region.result);
  const frame = $("frame").getBoundingClientRect();
  const x = event ? event.clientX - frame.left : frame.width / 2, y = event ? event.clientY - frame.top : 8;
  bubble.style.left = `${Math.min(x + 14, Math.max(4, frame.width - bubble.offsetWidth - 4))}px`;
  bubble.style.top = `${y + 18 + bubble.offsetHeight > frame.height ? Math.max(4, y - bubble.offsetHeight - 10) : y + 18}px`;
}

// Results to keep

function records() {
  return shown().filter((region) => region.result).map((region) => {
    if (region.record) {
      const { view, ...record } = region.record;
      return record;
    }
    const { mask, iou, box, area } = region.result.masks[region.chosen];
    const prompt = asked(region);
    const bbox = box ? [box[0], box[1], box[2] - box[0], box[3] - box[1]] : [0, 0, 0, 0];
    return { segmentation: mask, area, bbox, predicted_iou: iou, point_coords: prompt.points, box_prompt: prompt.box, caption: text(region.result), score: [region.result.score].flat()[0] };
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
  const answer = await call("draw", { image_id: state.image.id, regions: kept.map(({ caption, segmentation }) => ({ caption, segmentation })) });
  if (answer) save("regions.png", [Uint8Array.from(atob(answer.png), (letter) => letter.charCodeAt(0))], "image/png");
}

// Controls

function options() {
  const value = (name) => element.querySelector(`[data-opt="${name}"]`);
  const chosen = { task: value("task").value || null, num_beams: Number(value("num_beams").value), max_new_tokens: Number(value("max_new_tokens").value) };
  if (value("do_sample").checked) Object.assign(chosen, { do_sample: true, temperature: Number(value("temperature").value) });
  return chosen;
}

function showNumbers() {
  for (const input of all("input[type=range][data-set], input[type=range][data-opt]")) {
    const output = element.querySelector(`[data-out="${input.dataset.set || input.dataset.opt}"]`);
    if (output) output.textContent = input.value;
  }
  $("temperature").hidden = !element.querySelector('[data-opt="do_sample"]').checked;
}

function showModel(model) {
  state.model = model.name;
  const task = element.querySelector('[data-opt="task"]');
  task.replaceChildren(...model.tasks.map((name) => make("option", { value: name }, name)));
  task.value = model.tasks.includes("caption") ? "caption" : model.tasks[model.tasks.length - 1];
  for (const [name, value] of Object.entries(model.anything)) {
    const input = element.querySelector(`[data-set="${name}"]`);
    if (input) input.value = value;
  }
  const facts = { Model: model.name, "Language model": model.language_model, "Image encoder": `${model.image_encoder}, ${model.image_size} px`, Parameters: model.parameters.toLocaleString("en") };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  showNumbers();
}

async function changeModel(name) {
  const before = state.model, model = await call("describe_model", { model: name });
  if (!model) {
    $("model").value = before;
    return;
  }
  showModel(model);
  state.anything = [];
  state.past = [];
  render();
  for (const region of state.prompt) describe(region);
  status(`Now with ${name}.`);
}

function setMode(mode) {
  state.mode = mode;
  state.lit = null;
  $("bubble").hidden = true;
  for (const tab of all("[data-mode]")) {
    tab.setAttribute("aria-selected", String(tab.dataset.mode === mode));
    tab.tabIndex = tab.dataset.mode === mode ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `sca-tab-${mode}`);
  if (state.image) status(mode === "prompt" ? "Click on something." : `${state.anything.length} regions.`);
  render();
}

function setTool(tool) {
  state.tool = tool;
  for (const button of all("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === tool));
    button.tabIndex = button.dataset.tool === tool ? 0 : -1;
  }
  stage.corner = stage.far = null;
  render();
}

// Arrow keys move within tabs and tools, as they do in a native control.
function arrows(selector, choose) {
  const buttons = all(selector);
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => choose(button));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = buttons[(index + step + buttons.length) % buttons.length];
      choose(next);
      next.focus();
    });
  });
}

arrows("[data-mode]", (button) => setMode(button.dataset.mode));
arrows("[data-tool]", (button) => setTool(button.dataset.tool));
const acts = { choose: () => $("file").click(), undo, clear, json: () => download("json"), coco: () => download("coco"), png: () => download("png") };
for (const button of all("[data-act]")) button.addEventListener("click", acts[button.dataset.act]);
$("file").addEventListener("change", (event) => {
  readFile(event.target.files[0]);
  event.target.value = "";
});
$("model").addEventListener("change", (event) => changeModel(event.target.value));
$("controls").addEventListener("submit", (event) => {
  event.preventDefault();
  captionEverything();
});
for (const input of all("[data-set], [data-opt]")) input.addEventListener("input", showNumbers);
for (const input of all("[data-opt]"))
  input.addEventListener("change", () => {
    if (state.mode === "prompt") for (const region of state.prompt) describe(region);
  });
for (const name of ["dragover", "dragleave", "drop"])
  $("frame").addEventListener(name, (event) => {
    event.preventDefault();
    $("frame").classList.toggle("over", name === "dragover");
    if (name === "drop") readFile(event.dataTransfer.files[0]);
  });
document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
  if (file && element.isConnected) readFile(file);
});

(async () => {
  const start = await call("start", {});
  if (!start) return;
  state.start = start;
  $("limits").textContent = `Up to ${Math.floor(start.limits.bytes / 2 ** 20)} MB. It is kept in the server's memory for a while and never written to disk.`;
  $("model").replaceChildren(...start.models.map((name) => make("option", { value: name }, name)));
  $("examples").replaceChildren(...start.examples.map((example, index) => {
    const button = make("button", { type: "button", "aria-label": `Example ${index + 1}`, title: `Example ${index + 1}` }, make("img", { src: example, alt: "" }));
    button.addEventListener("click", () => openPicture({ example: index }));
    return button;
  }));
  showModel(start.model);
  status("Choose a picture, or one of the examples.");
  render();
  element.querySelector(".sca").dataset.ready = "yes";
})();
