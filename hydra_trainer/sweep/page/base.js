// What charts and table share: the data, what is chosen, scales, and small makers of elements.

const data = JSON.parse(document.getElementById("data").textContent);
const jobs = data.jobs;
const byNumber = new Map(jobs.map((job) => [job.number, job]));

// What is chosen on the page. `ranges` holds what was drawn on axes of the parallel coordinates:
// the axis' name -> its two ends, as fractions of the axis.
const chosen = {
  objective: 0,
  words: [],
  states: new Set(jobs.map((job) => job.state)),
  ranges: new Map(),
  hovered: null,
  pinned: null,
};
const listeners = { change: [], look: [] };

function tell(kind) {
  for (const listener of listeners[kind]) listener();
}

// Make an element; text among the children is text, never markup.
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "style") Object.assign(element.style, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A number with four digits, as short as it goes.
function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
  }
  return String(Number(value.toPrecision(4)));
}

const wholes = new Intl.NumberFormat("en-US");

function whole(count) {
  return wholes.format(count);
}

function lasted(seconds) {
  if (seconds === null) return "";
  const all = Math.round(seconds), two = (value) => String(value).padStart(2, "0");
  if (all >= 172800) return `${Math.floor(all / 86400)} d ${Math.floor((all % 86400) / 3600)} h`;
  const hours = Math.floor(all / 3600), minutes = Math.floor((all % 3600) / 60);
  return hours ? `${hours}:${two(minutes)}:${two(all % 60)}` : `${minutes}:${two(all % 60)}`;
}

function cut(text, length) {
  if (text.length <= length) return text;
  const tail = Math.floor((length - 1) / 2);
  return `${text.slice(0, length - 1 - tail)}…${text.slice(text.length - tail)}`;
}

// ------------------------------------------------------------------------------------- scales

// A scale says where a value lies, as a fraction of its axis (values off the axis at its end), and
// gives about as many ticks as it is asked for.
function numeric(axis) {
  const to = axis.log ? Math.log : (value) => value;
  const low = to(axis.low), high = to(axis.high);
  const place = (value) => (axis.log && value <= 0 ? -Infinity : (to(value) - low) / (high - low));
  return {
    at: (value) => (value === null ? null : Math.min(1, Math.max(0, place(value)))),
    off: (value) => place(value) < -1e-9 || place(value) > 1 + 1e-9,
    ticks: (count) => tickValues(axis, count).map((value) => ({ at: place(value), text: shown(value) })),
  };
}

function discrete(options) {
  const places = new Map(options.map((option, index) => [option, (index + 0.5) / options.length]));
  return {
    at: (value) => places.get(value) ?? null,
    off: () => false,
    ticks: (count) => {
      const step = Math.ceil(options.length / Math.max(count, 2));
      return options.filter((_, index) => index % step === 0).map((option) => ({ at: places.get(option), text: option }));
    },
  };
}

function tickValues(axis, count) {
  if (axis.ticks && axis.ticks.length <= count + 3) return axis.ticks;
  return axis.log ? powers(axis, count) : even(axis, count);
}

function even(axis, count) {
  const rough = (axis.high - axis.low) / Math.max(1, count), ten = 10 ** Math.floor(Math.log10(rough));
  const fine = ten * [1, 2, 5, 10].find((times) => times * ten >= rough * 0.999);
  const step = axis.whole ? Math.max(1, fine) : fine;
  const found = [];
  for (let index = Math.ceil(axis.low / step - 1e-9); index * step <= axis.high * (1 + 1e-12) + 1e-12; index += 1) {
    found.push(Number((index * step).toPrecision(12)));
  }
  return found;
}

function powers(axis, count) {
  const low = Math.floor(Math.log10(axis.low)), high = Math.ceil(Math.log10(axis.high));
  const within = (value) => value >= axis.low * 0.999 && value <= axis.high * 1.001;
  for (const times of [[1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let power = low; power <= high; power += 1) {
      for (const one of times) found.push(Number((one * 10 ** power).toPrecision(12)));
    }
    const kept = found.filter(within);
    if (kept.length <= count + 1 || (times.length === 1 && kept.length)) {
      const step = Math.ceil(kept.length / (count + 1));
      return kept.length >= 2 ? kept.filter((_, index) => index % step === 0) : even(axis, count);
    }
  }
  return even(axis, count);
}

// ------------------------------------------------------------------------------- what is chosen

function goal() {
  return data.objectives[chosen.objective];
}

function value(job, objective = chosen.objective) {
  return job.values.length ? job.values[objective] : null;
}

// The value, or of a job that was stopped early the last one that is known.
function lastValue(job) {
  return value(job) ?? (chosen.objective === 0 ? job.last : null);
}

function isShown(job) {
  if (!chosen.states.has(job.state)) return false;
  if (!chosen.words.every((word) => job.text.includes(word))) return false;
  for (const [name, [low, high]] of chosen.ranges) {
    const at = axes.get(name)(job);
    if (at === null || at < low || at > high) return false;
  }
  return true;
}

// The axes that something can be drawn on: name -> where a job lies, as a fraction.
const axes = new Map();

// Jobs with a value, the best first, by the objective that is chosen.
function ranking() {
  const sign = goal().mode === "max" ? -1 : 1;
  const scored = jobs.filter((job) => value(job) !== null);
  return scored.sort((a, b) => sign * (value(a) - value(b)) || a.number - b.number);
}

// In one of so many shades, from the best to the poorest.
const SHADES = 12;

function shade(index) {
  const share = Math.round(100 * (1 - index / (SHADES - 1)) ** 1.6);
  return `color-mix(in oklab, var(--good) ${share}%, var(--poor))`;
}

function shades() {
  const ranked = ranking(), found = new Map();
  // Fewer jobs in the shades of the best: of a thousand, some ten stand out.
  ranked.forEach((job, rank) => found.set(job.number, Math.floor(SHADES * (rank / ranked.length) ** 0.6)));
  return found;
}

function hover(job) {
  if (chosen.hovered === job) return;
  chosen.hovered = job;
  tell("look");
}

function pin(job) {
  chosen.pinned = chosen.pinned === job ? null : job;
  tell("look");
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { style: { position: "fixed", opacity: "0" } });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "copied";
  setTimeout(() => { button.textContent = before; }, 1200);
}
