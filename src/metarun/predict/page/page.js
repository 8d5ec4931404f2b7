// What stands on the page, and what it asks of the program behind it (app.py). No library, nothing from elsewhere.
"use strict";

const $ = id => document.getElementById(id);
const SHOWN = 5; // classes under an answer, and pictures beside a class

let facts; // what the program says of the learner and of its limits
const classes = []; // {name, pictures}; a picture is {id, file, own, view}: own shows the file itself, view what the net sees of it
let active = 0; // whose tab is open
const queries = []; // pictures, with an answer once there is one
let version = 0; // of the classes: counts their changes
let learned = null; // what the learner has adapted to: {version, shown, seconds, classes, pictures}
let busy = false;

function el(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function complain(line) {
  $("trouble").textContent = line;
  $("trouble").hidden = !line;
}

async function call(method, path, body, type = "application/json") {
  let response;
  try {
    response = await fetch(path, {method, body, headers: body ? {"Content-Type": type} : {}});
  } catch {
    throw new Error("The program behind this page does not answer: start metarun serve again, and reload.");
  }
  const result = await response.json();
  if (!response.ok) throw new Error(result.error);
  return result;
}

const ofSession = path => `sessions/${facts.session}/${path}`;

// ---- pictures ----

async function upload(file, name) {
  if (file.size > facts.limits.bytes) throw new Error(`larger than ${facts.limits.bytes / 1e6} MB`);
  const {picture, view} = await call("POST", ofSession("pictures"), file, "application/octet-stream");
  return {id: picture, file: name, own: URL.createObjectURL(file), view};
}

// Adds files to a list one after the other; those that are no pictures are named with the reason.
async function addAll(files, list) {
  const trouble = [];
  for (const file of files) {
    try {
      list.push(await upload(file, file.name || "drawing"));
    } catch (error) {
      trouble.push(`${file.name || "drawing"}: ${error.message}`);
    }
    render();
  }
  complain(trouble.join("\n"));
}

function forget(picture) {
  URL.revokeObjectURL(picture.own);
  call("DELETE", ofSession(`pictures/${picture.id}`)).catch(error => complain(error.message));
}

function netView(picture) {
  return el("img", {className: "net", src: picture.view, alt: picture.file, title: `${picture.file}, as the net sees it`});
}

function removal(what, act) {
  const button = el("button", {type: "button", textContent: "×", title: `Remove ${what}`, onclick: act});
  button.setAttribute("aria-label", `Remove ${what}`);
  return button;
}

// ---- where pictures come from: files that are dropped or chosen, and a canvas ----

function source(place, verb, add) {
  place.append($("source").content.cloneNode(true));
  const drop = place.querySelector(".drop"), input = place.querySelector("input[type=file]");
  input.onchange = async () => { await add([...input.files]); input.value = ""; };
  drop.ondragover = event => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = event => {
    event.preventDefault();
    drop.classList.remove("over");
    add([...event.dataTransfer.files]);
  };
  pad(place, verb, add);
}

function pad(place, verb, add) {
  const canvas = place.querySelector("canvas"), pen = canvas.getContext("2d");
  const [button, undo, clear] = ["add", "undo", "clear"].map(name => place.querySelector(`.${name}`));
  const width = place.querySelector(".pen");
  const strokes = []; // {width, points}
  let drawing = null;
  button.textContent = verb;

  function paint() {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.strokeStyle = "#000";
    pen.lineCap = pen.lineJoin = "round";
    for (const stroke of strokes) {
      pen.lineWidth = stroke.width;
      pen.beginPath();
      for (const point of stroke.points) pen.lineTo(...point);
      if (stroke.points.length === 1) pen.lineTo(stroke.points[0][0] + .01, stroke.points[0][1]); // a click is a dot
      pen.stroke();
    }
    button.disabled = undo.disabled = clear.disabled = !strokes.length;
  }
  const at = event => {
    const frame = canvas.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width * canvas.width, (event.clientY - frame.top) / frame.height * canvas.height];
  };
  canvas.onpointerdown = event => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drawing = {width: Number(width.value), points: [at(event)]};
    strokes.push(drawing);
    paint();
  };
  canvas.onpointermove = event => {
    if (drawing) { drawing.points.push(at(event)); paint(); }
  };
  canvas.onpointerup = canvas.onpointercancel = () => { drawing = null; };
  const wipe = () => { strokes.length = 0; paint(); };
  undo.onclick = () => { strokes.pop(); paint(); };
  clear.onclick = wipe;
  button.onclick = () => canvas.toBlob(blob => { wipe(); add([blob]); }, "image/png");
  paint();
}

// ---- classes ----

function addClass() {
  let number = classes.length + 1;
  while (classes.some(one => one.name === `class ${number}`)) number++;
  classes.push({name: `class ${number}`, pictures: []});
  active = classes.length - 1;
}

function changed() {
  version++;
  render();
}

// Why the learner cannot adapt yet, or nothing.
function lacking() {
  const names = classes.map(one => one.name.trim());
  const empty = classes.find(one => !one.pictures.length);
  if (facts.ways && classes.length !== facts.ways) return `This run tells exactly ${facts.ways} classes apart.`;
  if (classes.length < 2) return "Telling classes apart needs two at least.";
  if (names.some(name => !name)) return "A class has no name.";
  if (new Set(names).size < names.length) return "Two classes have the same name.";
  if (empty) return `${empty.name} has no picture yet.`;
  return "";
}

async function adapt() {
  busy = true;
  render();
  try {
    const steps = facts.steps === null || $("steps").value === "" ? null : Number($("steps").value);
    const lesson = {classes: classes.map(one => ({name: one.name.trim(), pictures: one.pictures.map(picture => picture.id)})), steps};
    const taught = version;
    const shown = Object.fromEntries(classes.map(one => [one.name.trim(), one.pictures.slice(0, SHOWN)]));
    const {seconds} = await call("POST", ofSession("learn"), JSON.stringify(lesson));
    learned = {version: taught, shown, seconds, classes: classes.length, pictures: classes.reduce((sum, one) => sum + one.pictures.length, 0)};
    complain("");
  } catch (error) {
    complain(error.message);
  }
  busy = false;
  await ask();
}

// All pictures on the page at once: some learners normalise them together.
async function ask() {
  const asked = [...queries];
  if (learned && asked.length) {
    try {
      const {answers} = await call("POST", ofSession("ask"), JSON.stringify({pictures: asked.map(picture => picture.id)}));
      answers.forEach((answer, i) => { asked[i].answer = answer; });
    } catch (error) {
      complain(error.message);
    }
  }
  render();
}

// ---- drawing the page ----

function open(i) {
  active = i;
  render();
  $(`tab-${i}`).focus();
}

function render() {
  $("tabs").replaceChildren(...classes.map((one, i) => {
    const tab = el("button", {type: "button", role: "tab", id: `tab-${i}`, tabIndex: i === active ? 0 : -1, onclick: () => open(i)},
      one.name || "…", " ", el("small", {textContent: one.pictures.length}));
    tab.setAttribute("aria-selected", i === active);
    tab.setAttribute("aria-controls", "panel");
    return tab;
  }));
  $("panel").setAttribute("aria-labelledby", `tab-${active}`);
  const {name, pictures} = classes[active];
  if ($("class-name").value !== name) $("class-name").value = name;
  $("support").replaceChildren(...pictures.map(picture => el("figure", {className: "tile"}, netView(picture),
    removal(picture.file, () => { pictures.splice(pictures.indexOf(picture), 1); forget(picture); changed(); }))));
  $("new-class").disabled = classes.length >= (facts.ways ?? facts.limits.classes);
  $("remove-class").disabled = classes.length <= 2;

  const why = lacking();
  $("adapt").disabled = busy || Boolean(why);
  $("adapted").textContent = busy ? "Adapting …" : why || (!learned ? "" : learned.version === version
    ? `Adapted to ${learned.classes} classes, ${learned.pictures} pictures, in ${learned.seconds.toFixed(2)} s.`
    : "The classes have changed since: adapt again.");
  $("answers").replaceChildren(...queries.map(card).reverse());
}

function card(picture) {
  const own = el("img", {className: "own", src: picture.own, alt: picture.file});
  own.onerror = () => { own.hidden = true; }; // a format that the browser does not know
  const figure = el("figure", {}, own, netView(picture), el("figcaption", {textContent: picture.file, title: picture.file}));
  const article = el("article", {className: learned?.version === version ? "answer" : "answer old"}, figure);
  const words = el("div");
  article.append(words, removal(picture.file, () => { queries.splice(queries.indexOf(picture), 1); forget(picture); ask(); }));
  if (!picture.answer) {
    words.append(el("p", {className: "soft", textContent: learned ? "…" : "Adapt, and the answer stands here."}));
    return article;
  }
  const {label, probability, probabilities} = picture.answer;
  const percent = p => `${(100 * p).toFixed(1)} %`;
  words.append(el("h3", {}, label ?? "unknown", el("span", {textContent: label === null ? " (none of the classes)" : ` ${percent(probability)}`})));
  const likely = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
  words.append(el("ol", {className: "bars"}, ...likely.map(([name, p]) => {
    const fill = el("i");
    fill.style.width = percent(p).replace(" ", "");
    return el("li", {}, el("span", {textContent: name, title: name}), el("span", {className: "bar"}, fill),
      el("span", {className: "number", textContent: percent(p)}), el("span", {className: "shots"}, ...(learned.shown[name] ?? []).map(netView)));
  })));
  return article;
}

// ---- beginning ----

async function begin() {
  facts = await call("POST", "sessions");
  $("about").textContent = `${facts.about}. Show it a few pictures of each class, let it adapt, and ask it about others.`;
  $("together").hidden = !facts.together;
  $("steps-label").hidden = facts.steps === null;
  if (facts.steps !== null) $("steps").value = facts.steps;
  $("class-name").maxLength = facts.limits.name;
  for (let i = 0; i < (facts.ways ?? 2); i++) addClass();
  active = 0;
  source($("support-source"), "Add drawing", async files => { await addAll(files, classes[active].pictures); changed(); });
  source($("query-source"), "Ask", async files => { await addAll(files, queries); await ask(); });
  $("new-class").onclick = () => { addClass(); changed(); $("class-name").select(); };
  $("remove-class").onclick = () => {
    classes.splice(active, 1)[0].pictures.forEach(forget);
    active = Math.min(active, classes.length - 1);
    changed();
  };
  $("class-name").oninput = () => { classes[active].name = $("class-name").value; changed(); };
  $("tabs").onkeydown = event => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (step) open((active + step + classes.length) % classes.length);
  };
  $("steps").oninput = changed;
  $("adapt").onclick = adapt;
  $("trouble").onclick = () => complain("");
  addEventListener("beforeunload", event => { if (classes.some(one => one.pictures.length)) event.preventDefault(); });
  // A picture that misses its place would replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, event => event.preventDefault());
  render();
}

begin().catch(error => complain(error.message));
