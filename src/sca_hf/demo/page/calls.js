// Calls of the server: what is said while they last and where they fail. `element` and `server` are Gradio's.

const $ = (name) => element.querySelector(`[data-id="${name}"]`);
const all = (selector) => [...element.querySelectorAll(selector)];
const PING = 600, PATIENCE = 1200; // milliseconds; a lost server is said within their sum
const LOST = "The server does not respond. Your input is kept.";

// What is being waited for; `lost` where a call failed, `down` where the server was asked and did not answer either;
// what is to be done once more; which picture was chosen last.
const line = { waiting: [], lost: false, down: false, watch: null, about: null, failed: new Set(), chosen: 0 };

// `about` is what an error is about: it is shown until that succeeds, or is given up.
function say(message, about = null, retry = false) {
  line.about = message ? about : null;
  $("errortext").textContent = message || "";
  $("retry").hidden = !retry;
  $("error").hidden = !message;
}

function status(text) {
  $("status").textContent = $("status").title = text;
}

// The answer of one of the server's functions; null where there is none, which has been said.
async function call(name, payload, doing, about = name) {
  const entry = { name, doing };
  line.waiting.push(entry);
  line.watch ??= setInterval(ping, PING);
  showBusy();
  try {
    const answer = await server[name](payload);
    if (!answer) throw new Error("no answer"); // Gradio's client turns a failed request into nothing
    if (line.down) found();
    if (answer.error && !answer.gone && !answer.cancelled) say(answer.error, about);
    else if (!answer.error && line.about === about) say(null);
    return answer;
  } catch {
    lose();
    return null;
  } finally {
    line.waiting.splice(line.waiting.indexOf(entry), 1);
    showBusy();
  }
}

function lose() {
  line.lost = true;
  line.watch ??= setInterval(ping, PING);
  say(LOST, "server", true);
}

function found() {
  const { down } = line;
  line.lost = line.down = false;
  if (line.about === "server") say(null);
  if (down) retry();
  // It is there, and yet did not take what it was sent: doing that again and again by ourselves would not help.
  else if (line.failed.size) say("The server could not do this. Your input is kept.", "server", true);
}

// While something is waited for, or the server is lost, it is asked whether it is there.
async function ping() {
  if (!line.waiting.length && !line.lost) {
    clearInterval(line.watch);
    line.watch = null;
  } else if (!line.pinging) {
    line.pinging = true;
    const late = new Promise((done) => setTimeout(done, PATIENCE));
    const answer = await Promise.race([Promise.resolve(server.alive({})).catch(() => null), late]);
    line.pinging = false;
    if (!answer) {
      lose();
      line.down = true;
    } else if (line.lost) found();
  }
}

// What failed for want of a server is done once more.
function retry() {
  const failed = [...line.failed];
  line.failed.clear();
  for (const again of failed) again();
}

// Style sheets of Gradio's components cannot hold animations.
if (!matchMedia("(prefers-reduced-motion: reduce)").matches)
  $("progress").animate({ backgroundPosition: ["100% 0", "0% 0"] }, { duration: 1400, iterations: Infinity });

// The last of what is being done is shown, and how far it is, where that is known.
function showBusy() {
  const entry = line.waiting.filter((one) => one.doing).pop();
  $("busy").hidden = !entry;
  $("busytext").textContent = entry?.doing || "";
  if (entry?.fraction) $("progress").value = entry.fraction;
  else $("progress").removeAttribute("value");
}
