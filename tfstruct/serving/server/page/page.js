"use strict";
// Asks the REST interface of this server and shows its answers; nothing else is fetched.

const element = (id) => document.getElementById(id);
const state = { card: null, pixels: [], hidden: [], size: [28, 28] };

async function request(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const reply = await response.json();
  if (!response.ok) throw new Error(reply.error || `HTTP status ${response.status}`);
  return reply;
}

const path = () => `/v1/models/${encodeURIComponent(element("model").value)}`;
const has = (signature) => state.card !== null && signature in state.card.signatures;
const isGrey = () => state.card.support === "integers_0_255";
const largest = () => (isGrey() ? 255 : 1);

// Outputs by name; the server leaves out the name of an only one.
async function predict(signature, inputs) {
  const { outputs } = await request(`${path()}:predict`, { signature_name: signature, inputs });
  const names = Object.keys(state.card.signatures[signature].outputs);
  return names.length === 1 ? { [names[0]]: outputs } : outputs;
}

const seed = () => Math.max(0, Math.trunc(Number(element("seed").value) || 0));

function rows(values) {
  const [height, width] = state.size;
  return Array.from({ length: height }, (_, row) => values.slice(row * width, (row + 1) * width));
}

// What the model scores: zeros and ones for one of binary data, whole numbers for one of grey levels.
function observation() {
  const support = state.card.support;
  return rows(state.pixels.map((value) => {
    if (support === "binary") return value >= 0.5 ? 1 : 0;
    return isGrey() ? Math.round(255 * value) : value;
  }));
}

function paint(canvas, image, colour) {
  const [height, width] = [image.length, image[0].length];
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  image.flat().forEach((value, place) => pixels.data.set(colour(Number(value), place), 4 * place));
  context.putImageData(pixels, 0, 0);
}

const grey = (value) => {
  const level = Math.round(255 * Math.min(1, Math.max(0, value / largest())));
  return [level, level, level, 255];
};

function show() {
  const image = rows(state.pixels.map((value) => value * largest()));
  paint(element("draw"), image, (value, place) => (state.hidden[place] ? [120, 140, 200, 255] : grey(value)));
}

function picture(title, image, colour = grey) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const caption = document.createElement("figcaption");
  caption.textContent = title;
  figure.dataset.name = title;
  paint(canvas, image, colour);
  figure.append(canvas, caption);
  element("pictures").append(figure);
}

function number(title, text, name) {
  const term = document.createElement("dt");
  const value = document.createElement("dd");
  term.textContent = title;
  value.textContent = text;
  value.dataset.name = name;
  element("numbers").append(term, value);
}

const digits = (value, count = 2) => (Number.isFinite(Number(value)) ? Number(value).toFixed(count) : String(value));

// Where conditional is less than marginal, a region fits badly to the others: red; blue where it fits well.
function regions(reply) {
  const [height, width] = state.size;
  const image = new Array(height * width).fill(0);
  const gains = reply.conditional[0].map((value, region) => Number(value) - Number(reply.marginal[0][region]));
  state.card.leaf_regions.forEach((region, index) => {
    for (const place of region) image[place] = gains[index];
  });
  const scale = Math.max(...gains.map(Math.abs), 1e-6);
  picture("regions: red fits badly", rows(image), (value) => {
    const part = Math.round(255 * (1 - Math.abs(value) / scale));
    return value < 0 ? [255, part, part, 255] : [part, part, 255, 255];
  });
}

async function ask() {
  element("numbers").replaceChildren();
  element("pictures").replaceChildren();
  const x = [observation()];
  const inputs = { x, seed: [seed()] };
  if (state.hidden.some(Boolean)) {
    const observed = [rows(state.hidden.map((hidden) => !hidden))];
    const scores = await predict("marginal_log_prob", { ...inputs, observed });
    score("log p of the visible pixels", scores);
    const completed = await predict("inpaint", { ...inputs, observed });
    picture("completed: mean", completed.x_mean[0]);
    picture("completed: a draw", completed.x[0]);
    return;
  }
  score(has("conditional_log_prob") ? "log p(second part | first)" : "log p(x)", await predict("log_prob", inputs));
  if (has("anomaly")) {
    const takesAlpha = "alpha" in state.card.signatures.anomaly.inputs;
    const found = await predict("anomaly", takesAlpha ? { ...inputs, alpha: [0.05] } : inputs);
    number("p-value", digits(found.p_value[0], 4), "p_value");
  }
  picture("reconstruction", (await predict("reconstruct", inputs)).x_mean[0]);
  if (has("region_log_prob") && (state.card.leaf_regions || []).length) {
    const reply = await predict("region_log_prob", inputs);
    if (reply.conditional) regions(reply);
  }
}

function score(title, scores) {
  const error = scores.std_err === undefined ? "" : ` ± ${digits(scores.std_err[0])}`;
  number(title, `${digits(scores.log_prob[0])}${error} nats`, "log_prob");
  if (scores.bits_per_dim !== undefined && Number.isFinite(Number(scores.bits_per_dim[0]))) {
    number("bits per dimension", digits(scores.bits_per_dim[0], 4), "bits_per_dim");
  }
}

// One for each draw; those of different seeds are independent.
const seeds = (count) => Array.from({ length: count }, (_, place) => 1000 * seed() + place);

async function samples() {
  const { x_mean } = await predict("sample", { seed: seeds(16) });
  const [height, width] = state.size;
  const grid = Array.from({ length: 4 * height }, (_, row) =>
    [0, 1, 2, 3].flatMap((column) => x_mean[4 * Math.floor(row / height) + column][row % height]));
  element("samples").hidden = false;
  paint(element("samples"), grid, grey);
}

async function sampled() {
  const { x } = await predict("sample", { seed: [Math.floor(1e9 * Math.random())] });
  state.pixels = x[0].flat().map((value) => Number(value) / largest());
  state.hidden.fill(false);
  show();
}

function clear() {
  const count = state.size[0] * state.size[1];
  state.pixels = new Array(count).fill(0);
  state.hidden = new Array(count).fill(false);
  show();
}

async function choose() {
  state.card = await request(`${path()}/card`);
  const shape = state.card.event_shape;
  const isImage = shape.length === 2;
  for (const id of ["ask", "sampled", "draws", "clear", "file"]) element(id).disabled = !isImage;
  element("draws").disabled = element("sampled").disabled = !isImage || !has("sample");
  element("hide").hidden = !has("inpaint");
  element("hiding").checked = false;
  element("samples").hidden = true;
  const about = (state.card.about || state.card.target).replace(/[.]$/, "");
  const measured = state.card.metrics ? `; test log-likelihood ${digits(state.card.metrics.log_likelihood)} nats` : "";
  element("about").textContent = isImage
    ? `${state.card.preset}: ${about}${measured}`
    : `${state.card.preset} is no model of grey images: this page cannot show it`;
  element("numbers").replaceChildren();
  element("pictures").replaceChildren();
  if (isImage) {
    state.size = shape;
    clear();
  }
}

function stroke(event) {
  const canvas = element("draw");
  const box = canvas.getBoundingClientRect();
  const [height, width] = state.size;
  const column = ((event.clientX - box.left) / box.width) * width;
  const row = ((event.clientY - box.top) / box.height) * height;
  const isHiding = element("hiding").checked;
  const radius = Math.max(0.75, (isHiding ? 2.5 : 1.3) * (width / 28)); // in pixels of the image
  for (let y = Math.floor(row - radius); y <= row + radius; y++) {
    for (let x = Math.floor(column - radius); x <= column + radius; x++) {
      const distance = Math.hypot(x + 0.5 - column, y + 0.5 - row);
      if (x < 0 || y < 0 || x >= width || y >= height || distance > radius) continue;
      const place = y * width + x;
      if (isHiding) state.hidden[place] = true;
      else state.pixels[place] = Math.max(state.pixels[place], Math.min(1, 1.5 - distance / radius));
    }
  }
  show();
}

async function open(file) {
  const bitmap = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = state.size;
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  state.hidden.fill(false);
  state.pixels = state.pixels.map((_, place) => (data[4 * place] + data[4 * place + 1] + data[4 * place + 2]) / 765);
  show();
}

// Runs an action, with its failure as a message for people.
function guarded(action) {
  return async (event) => {
    element("error").textContent = "";
    document.body.setAttribute("aria-busy", "true");
    try {
      await action(event);
    } catch (error) {
      element("error").textContent = error.message;
    } finally {
      document.body.removeAttribute("aria-busy");
    }
  };
}

const canvas = element("draw");
canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); stroke(event); });
canvas.addEventListener("pointermove", (event) => { if (event.buttons) stroke(event); });
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
document.addEventListener("drop", guarded(async (event) => { await open(event.dataTransfer.files[0]); }));
element("file").addEventListener("change", guarded(async (event) => { await open(event.target.files[0]); }));
element("clear").addEventListener("click", clear);
element("sampled").addEventListener("click", guarded(sampled));
element("ask").addEventListener("click", guarded(ask));
element("draws").addEventListener("click", guarded(samples));
element("model").addEventListener("change", guarded(choose));

guarded(async () => {
  const { models } = await request("/v1/models");
  for (const { name } of models) element("model").append(new Option(name, name));
  await choose();
})();
