// The page: its state, what is done with pictures and regions, and its controls.

const state = {
  mode: "prompt", tool: "point", start: null, image: null, model: null, presets: {}, own: {},
  prompt: [], anything: [], active: { prompt: null, anything: null }, lit: null, next: 0, past: [], job: null,
};
const shown = () => (state.mode === "prompt" ? state.prompt : state.anything);

const stage = makeStage($("canvas"), {
  regions: shown, lit: () => litRegion()?.id, chosen: () => state.active[state.mode], mode: () => state.mode, tool: () => state.tool, refining: () => $("refine").checked,
  brushWidth: () => Number($("brushwidth").value), words: (region) => (region.result ? brief(said(region.result)) : ""),
  addPoint, addBox, addStroke, select: (region) => select(region ? region.id : null),
  hover: (region) => {
    if ((region ? region.id : null) === state.lit) return;
    state.lit = region ? region.id : null;
    light();
  },
});

const brief = (words) => (words.length > 26 ? `${words.slice(0, 25).replace(/\s+\S*$/, "")} …` : words);

// Pictures

// The size at which a picture is shown, as the server has it: small ones are enlarged by a whole number.
function viewSize(width, height) {
  const longest = Math.max(width, height), view = state.start.view;
  const scale = longest > view ? view / longest : Math.max(1, Math.min(4, Math.floor(view / longest)));
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
}

// `source` is what the server is told; `preview`, a picture that the browser has already, is shown at once.
async function openPicture(source, preview, width, height) {
  const before = { ...state, picture: stage.picture, view: [$("canvas").width, $("canvas").height] };
  if (state.job) cancel();
  line.chosen++;
  const image = { source, id: null, width, height };
  Object.assign(state, { image, prompt: [], anything: [], past: [], active: { prompt: null, anything: null }, lit: null, next: 0 });
  say(null);
  if (preview) showPicture(preview, ...viewSize(width, height));
  render();
  await load(image);
  if (image !== state.image || image.id || line.failed.size) return;
  // The server refused it, and said why: what was there before is there again.
  const { picture, view, ...rest } = before;
  Object.assign(state, rest);
  if (state.image) showPicture(picture, ...view);
  else $("canvas").hidden = !($("drop").hidden = false);
  status(state.image ? "Back to the previous picture." : "Choose a picture, or one of the examples.");
  render();
}

function load(image) {
  image.ready = (async () => {
    const answer = await call("open_picture", { ...image.source, model: state.model }, "Opening the picture …");
    if (image !== state.image) return;
    if (!answer) return line.failed.add(() => image === state.image && load(image));
    if (answer.error) return;
    const picture = new Image();
    picture.src = answer.view;
    await picture.decode();
    if (image !== state.image) return;
    Object.assign(image, { id: answer.image_id, width: answer.width, height: answer.height });
    if (picture.naturalWidth !== $("canvas").width || picture.naturalHeight !== $("canvas").height || $("canvas").hidden)
      showPicture(picture, picture.naturalWidth, picture.naturalHeight);
    else stage.picture = picture;
    if (!state.prompt.length) status(state.mode === "prompt" ? "Click on something." : "Ready to caption everything.");
    render();
  })();
  return image.ready;
}

function showPicture(picture, width, height) {
  $("drop").hidden = true;
  $("canvas").hidden = false;
  stage.show(picture, width, height);
}

async function readFile(file) {
  if (!state.start) return say("The page is not connected yet.", "start");
  if (!file) return say("Only files can be dropped here; save the picture first.", "open_picture");
  if (file.size > state.start.limits.bytes)
    return say(`This file is too large; the limit is ${Math.floor(state.start.limits.bytes / 2 ** 20)} MB.`, "open_picture");
  status(`Opening ${file.name || "the picture"} …`);
  const preview = new Image(), reader = new FileReader(), turn = ++line.chosen;
  preview.src = URL.createObjectURL(file);
  const shows = await preview.decode().then(() => preview, () => null); // of some kinds only the server can
  reader.onload = () => {
    if (turn === line.chosen) openPicture({ data: reader.result.slice(reader.result.indexOf(",") + 1) }, shows, preview.naturalWidth, preview.naturalHeight);
    URL.revokeObjectURL(preview.src);
  };
  reader.onerror = () => say("This file cannot be read.", "open_picture");
  reader.readAsDataURL(file);
}

// Asks about the picture, once it is open; where the server has forgotten it, it is opened again.
async function ask(name, payload, doing, again) {
  const image = state.image;
  const once = async () => {
    await image.ready;
    return image.id && image === state.image ? call(name, { image_id: image.id, model: state.model, ...payload() }, doing) : null;
  };
  let answer = await once();
  if (answer?.gone) {
    await load(image);
    answer = await once();
  }
  if (!answer && image === state.image && line.lost) line.failed.add(again);
  return answer;
}

// Regions that are pointed at

const active = () => state.prompt.find((region) => region.id === state.active.prompt) || null;

// Prompts and results as they are now; a result is never changed, only replaced.
function remember() {
  const copy = state.prompt.map((r) => ({ ...r, prompt: { ...r.prompt, points: [...r.prompt.points], labels: [...r.prompt.labels] } }));
  state.past.push({ regions: copy, active: state.active.prompt });
  if (state.past.length > 100) state.past.shift();
}

function target(refine) {
  if ((refine || $("refine").checked) && active()) return active();
  const region = { id: ++state.next, color: colorOf(state.next - 1), prompt: { points: [], labels: [], box: null, bits: null } };
  state.prompt.push(region);
  state.active.prompt = region.id;
  return region;
}

function addPoint(point, label, refine) {
  if (label === 0 && !active()) return say("Point at something first, then at the parts to leave out.", "describe");
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
  Object.assign(region, { pending: true, failed: false });
  render();
  const payload = () => ({ region: asked(region), options: options() });
  const doing = state.own.name ? `Reading region ${region.id} …` : "Loading the model …";
  const answer = await ask("describe", payload, doing, () => region.failed && state.prompt.includes(region) && describe(region));
  // Of several questions about a region only the last one counts, and none about another picture.
  if (turn !== region.turn || image !== state.image) return;
  region.pending = false;
  region.failed = !answer;
  if (answer && !answer.error) take(region, answer);
  else if (answer && !region.result) state.prompt = state.prompt.filter((other) => other !== region);
  render();
  if (region.result && answer && !answer.error) status(`Region ${region.id}: ${said(region.result)}`);
}

function take(region, result) {
  region.result = result;
  choose(region, result.masks.findIndex((mask) => mask.iou === result.iou));
}

function choose(region, index) {
  const mask = region.result.masks[index];
  Object.assign(region, { chosen: index, mask: decodeMask(mask.view), area: mask.area, spot: mask.spot, paint: null });
}

function leave(regions) {
  for (const region of regions) region.turn = (region.turn || 0) + 1;
}

function remove(region) {
  remember();
  leave([region]);
  state.prompt = state.prompt.filter((other) => other !== region);
  state.lit = null;
  render();
}

function undo() {
  const before = state.past.pop();
  if (!before) return;
  leave(state.prompt);
  state.prompt = before.regions.map((region) => ({ ...region, pending: false }));
  state.active.prompt = before.active;
  say(null);
  render();
  for (const region of state.prompt) if (!region.result) describe(region);
  status("Undone.");
}

function clear() {
  remember();
  leave(state.prompt);
  state.prompt = [];
  state.active.prompt = null;
  say(null);
  render();
  status("Cleared.");
}

// Everything in the picture

async function captionEverything() {
  if (!state.image) return say("Choose a picture first.", "everything");
  if (state.job) return;
  const image = state.image, settings = {}, job = (state.job = Math.random().toString(36).slice(2));
  for (const input of all("[data-set]")) settings[input.dataset.set] = input.type === "checkbox" ? input.checked : Number(input.value);
  say(null);
  render();
  $("cancel").focus();
  const timer = setInterval(() => showProgress(job), 500);
  const payload = () => ({ settings, options: options(), job, session: state.start.session });
  await line.cancelled; // before the next one begins
  const answer = await ask("everything", payload, state.own.name ? "Finding things …" : "Loading the model …", captionEverything);
  clearInterval(timer);
  if (job !== state.job) return; // it was cancelled
  const held = document.activeElement === $("cancel");
  state.job = null;
  render();
  if (held) $("run").focus();
  if (!answer || answer.error || image !== state.image) return;
  state.anything = answer.regions.map((record, index) => ({
    id: index + 1, color: colorOf(index), record, mask: decodeMask(record.view), area: record.area, spot: record.spot,
    result: { caption: record.caption, score: record.score, confidence: record.confidence, masks: [{ iou: record.predicted_iou }] },
  }));
  Object.assign(state, { lit: null, active: { ...state.active, anything: null } });
  render();
  status(state.anything.length ? `${state.anything.length} regions. Choose one to read it.` : "Nothing found. Dense finds more.");
}

function cancel() {
  if (!state.job) return;
  line.cancelled = call("cancel", { session: state.start.session, job: state.job });
  state.job = null;
  render();
  $("run").focus();
  for (const entry of line.waiting) if (entry.name === "everything") entry.doing = null;
  showBusy();
  status("Cancelled.");
}

async function showProgress(job) {
  const news = await Promise.resolve(server.progress({ job })).catch(() => null);
  const entry = line.waiting.find((one) => one.name === "everything");
  if (!news?.fraction || !entry || job !== state.job) return;
  Object.assign(entry, { doing: `${news.text} …`, fraction: news.fraction });
  showBusy();
}

// Controls

function options() {
  const value = (name) => element.querySelector(`[data-opt="${name}"]`);
  const chosen = { task: value("task").value || null, length: value("length").value || null, language: value("language").value || null, num_beams: Number(value("num_beams").value), max_new_tokens: Number(value("max_new_tokens").value) };
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

// Marks one of several buttons of which one holds; the Tab key goes to it, or to the first.
function mark(selector, attribute, chosen) {
  all(selector).forEach((one, index) => {
    one.setAttribute(attribute, String(one === chosen));
    one.tabIndex = one === chosen || (!chosen && !index) ? 0 : -1;
  });
}

function setPreset(name) {
  for (const [setting, value] of Object.entries({ ...state.own.anything, ...state.presets[name] })) {
    const input = element.querySelector(`[data-set="${setting}"]`);
    if (input?.type === "checkbox") input.checked = value;
    else if (input) input.value = value;
  }
  mark("[data-preset]", "aria-checked", element.querySelector(`[data-preset="${name}"]`));
  showNumbers();
}

function showModel(model) {
  Object.assign(state, { model: model.name, own: model, presets: model.presets });
  const task = element.querySelector('[data-opt="task"]');
  const plain = model.tasks.filter((name) => !name.includes(":")); // "caption:de:detailed" is a language and a length of a task
  task.replaceChildren(...plain.map((name) => make("option", { value: name }, name)));
  task.value = model.tasks.includes("caption") ? "caption" : plain[plain.length - 1];
  const offer = (option, known, words) => {
    const select = element.querySelector(`[data-opt="${option}"]`);
    select.replaceChildren(...["", ...known].map((name) => make("option", { value: name }, name ? words(name) : "usual")));
    select.parentElement.hidden = known.length === 0;
  };
  const learned = () => {
    const parts = model.tasks.filter((name) => name.startsWith(`${task.value}:`)).flatMap((name) => name.split(":").slice(1));
    const [lengths, languages] = [true, false].map((length) => [...new Set(parts)].filter((part) => /^(short|sentence|detailed|\d+)$/.test(part) === length));
    offer("length", lengths, (name) => name);
    offer("language", languages, (tag) => new Intl.DisplayNames([tag], { type: "language" }).of(tag));
  };
  task.onchange = learned;
  learned();
  const most = element.querySelector('[data-opt="max_new_tokens"]');
  most.max = model.max_new_tokens;
  if (plain.length < model.tasks.length) most.value = most.max; // captions of any length end by themselves
  setPreset("normal");
  const { knows, limits } = model.scope;
  $("scope").textContent = [knows && `It knows ${knows}.`, limits].filter(Boolean).join(" ");
  const facts = { Model: model.name, "Language model": model.language_model, "Image encoder": `${model.image_encoder}, ${model.image_size} px`, Parameters: model.parameters.toLocaleString("en") };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  // A model of the Hub has its card there, one from a folder has it with it.
  const card = model.card ? URL.createObjectURL(new Blob([model.card], { type: "text/plain;charset=utf-8" })) : `https://huggingface.co/${model.name}`;
  $("card").href = card;
  $("card").hidden = !model.card && !model.name.includes("/");
}

async function changeModel(name) {
  const before = state.model, model = await call("describe_model", { model: name }, `Loading ${name} …`);
  if (!model) return line.failed.add(() => $("model").value === name && changeModel(name));
  if (model.error) return ($("model").value = before);
  showModel(model);
  Object.assign(state, { anything: [], past: [] });
  render();
  for (const region of state.prompt) describe(region);
  status(`Now using ${name}.`);
}

function setMode(mode) {
  Object.assign(state, { mode, lit: null });
  const tab = element.querySelector(`[data-mode="${mode}"]`);
  mark("[data-mode]", "aria-selected", tab);
  $("panel").setAttribute("aria-labelledby", tab.id);
  if (!line.lost) say(null); // it was about the other tab
  if (state.image) status(mode === "prompt" ? "Click on something." : state.anything.length ? `${state.anything.length} regions.` : "Ready to caption everything.");
  render();
}

function setTool(tool) {
  state.tool = tool;
  mark("[data-tool]", "aria-checked", element.querySelector(`[data-tool="${tool}"]`));
  stage.corner = stage.far = null;
  render();
}

// Arrow keys move within tabs and tools, as they do in a native control.
function arrows(selector, choose) {
  const buttons = all(selector);
  buttons.forEach((one, index) => {
    one.addEventListener("click", () => choose(one));
    one.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = buttons[(index + step + buttons.length) % buttons.length];
      choose(next);
      next.focus();
    });
  });
}

arrows("[data-mode]", (one) => setMode(one.dataset.mode));
arrows("[data-tool]", (one) => setTool(one.dataset.tool));
arrows("[data-preset]", (one) => setPreset(one.dataset.preset));
const acts = {
  choose: () => $("file").click(), undo, clear, run: captionEverything, cancel, retry, dismiss: () => say(null),
  json: () => download("json"), coco: () => download("coco"), png: () => download("png"),
};
for (const one of all("[data-act]")) one.addEventListener("click", () => acts[one.dataset.act]());
$("file").addEventListener("change", (event) => {
  if (event.target.files.length) readFile(event.target.files[0]);
  event.target.value = "";
});
$("model").addEventListener("change", (event) => changeModel(event.target.value));
for (const input of all("[data-set], [data-opt]")) input.addEventListener("input", showNumbers);
for (const input of all("[data-set]")) input.addEventListener("input", () => mark("[data-preset]", "aria-checked", null));
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
addEventListener("resize", () => light());

async function begin() {
  const start = await call("start", {}, "Connecting …");
  if (!start || start.error) return start || line.failed.add(begin);
  state.start = start;
  state.model = start.models[0];
  $("limits").textContent = `Up to ${Math.floor(start.limits.bytes / 2 ** 20)} MB. It is kept in the server's memory for a while and never written to disk.`;
  $("model").replaceChildren(...start.models.map((name) => make("option", { value: name }, name)));
  $("examples").replaceChildren(...start.examples.map((example, index) => {
    const picture = make("img", { src: example.view, alt: "" });
    const open = () => openPicture({ example: index }, picture, example.width, example.height);
    return button({ "aria-label": `Example: ${example.name}`, title: example.name }, picture, open);
  }));
  $("credits").replaceChildren("Examples: ", ...start.examples.flatMap((example, index) => [
    index ? ", " : "", make("a", { href: example.source, target: "_blank", rel: "noopener" }, `${example.name.toLowerCase()} by ${example.credit}`), ` (${example.license})`,
  ]));
  status("Choose a picture, or one of the examples.");
  render();
  element.querySelector(".sca").dataset.ready = "yes";
  loadModel();
}

async function loadModel() {
  const model = await call("describe_model", { model: state.model }, `Loading ${state.model} …`);
  if (!model) line.failed.add(loadModel);
  else if (!model.error) showModel(model);
}

begin();
