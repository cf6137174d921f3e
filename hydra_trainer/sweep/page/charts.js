// The charts. Each one is drawn anew when something is chosen or the window changes: a chart of
// 1,000 jobs is a dozen paths, for jobs of one shade are one path.

const tip = document.body.appendChild(make("div", { class: "tip", hidden: "" }));
const plots = [];

function card(title, note, ...content) {
  const header = make("header", {}, make("h2", {}, title), make("span", { class: "note" }, note));
  return make("section", { class: "card" }, header, ...content);
}

// A chart in a holder. `render(svg, width)` draws it and returns the points that can be pointed
// at, and `trace(job)`: the path that shows one job, if it is more than its points.
function plot(kind, height, render, least = 0) {
  const holder = make("div", { class: "scroll" });
  const found = { holder, drawn: null, width: 0 };
  found.redraw = () => {
    if (!found.width) return;
    const width = Math.max(found.width, least);
    const svg = draw("svg", { class: `plot ${kind}`, width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": kind });
    found.drawn = render(svg, width, height);
    found.over = svg.appendChild(draw("g"));
    pointable(svg, found);
    holder.replaceChildren(svg);
    found.look();
  };
  found.look = () => {
    if (!found.drawn) return;
    const picked = [chosen.pinned, chosen.hovered].filter(Boolean);
    found.over.replaceChildren(...picked.flatMap((job) => haloes(found.drawn, job)));
  };
  plots.push(found);
  return holder;
}

// Widths are asked for before anything is drawn: each question after a change lays out the page anew.
function redraw(some = plots) {
  for (const one of some) one.width = one.holder.clientWidth;
  for (const one of some) one.redraw();
}

function haloes(drawn, job) {
  const path = drawn.trace ? drawn.trace(job) : null;
  if (path) {
    const under = draw("path", { d: path, style: { stroke: "var(--card)", strokeWidth: "6" } });
    return [under, draw("path", { d: path, class: "halo" })];
  }
  const own = drawn.points.filter((point) => point.job === job);
  return own.map((point) => draw("circle", { cx: point.x, cy: point.y, r: 7, class: "halo" }));
}

function pointable(svg, found) {
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    let best = null, least = 26 ** 2;
    for (const point of found.drawn.points) {
      const far = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (far < least) [best, least] = [point, far];
    }
    return best;
  };
  svg.addEventListener("pointermove", (event) => {
    if (event.buttons) return; // something is being drawn on an axis
    const point = nearest(event);
    hover(point ? point.job : null);
    showTip(point, event);
  });
  svg.addEventListener("pointerleave", () => { hover(null); tip.hidden = true; });
  svg.addEventListener("click", (event) => {
    const point = nearest(event);
    if (point) pin(point.job);
  });
}

function showTip(point, event) {
  tip.hidden = !point;
  if (!point) return;
  const job = point.job, lines = [];
  data.objectives.forEach((one, index) => {
    const found = job.values.length ? job.values[index] : index === 0 ? job.last : null;
    if (found !== null) lines.push([one.metric, shown(found)]);
  });
  data.params.slice(0, 12).forEach((param, index) => {
    if (job.params[index] !== null) lines.push([param.name, shown(job.params[index])]);
  });
  if (point.step !== undefined) lines.push(["step", whole(point.step)]);
  if (job.seconds !== null) lines.push(["time", lasted(job.seconds)]);
  if (job.reason) lines.push(["why", cut(job.reason, 120)]);
  const rows = lines.map(([name, text]) => make("tr", {}, make("td", {}, name), make("td", { class: "mono" }, text)));
  const head = make("div", {}, make("b", {}, `job ${job.number} `), make("span", { class: `state is-${job.state}` }, job.state));
  tip.replaceChildren(head, make("table", {}, ...rows));
  const size = tip.getBoundingClientRect(), room = document.documentElement.clientWidth;
  const left = event.clientX + 16 + size.width > room ? event.clientX - size.width - 12 : event.clientX + 16;
  const top = event.clientY + 16 + size.height > innerHeight ? event.clientY - size.height - 12 : event.clientY + 16;
  Object.assign(tip.style, { left: `${Math.max(4, left) + scrollX}px`, top: `${Math.max(4, top) + scrollY}px` });
}

// ---------------------------------------------------------------------------------- small parts

const round = (value) => Math.round(value * 10) / 10;

// Dots as one path: lines of no length with round ends.
function dots(points) {
  return points.map((point) => `M${round(point.x)} ${round(point.y)}h.01`).join("");
}

function triangles(points, size = 4) {
  return points.map(({ x, y }) => `M${round(x)} ${round(y - size)}l${size} ${size * 1.7}h${-2 * size}z`).join("");
}

function crosses(points, size = 3.5) {
  return points.map(({ x, y }) => `M${round(x - size)} ${round(y - size)}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`).join("");
}

function line(points) {
  return points.map((point, index) => `${index ? "L" : "M"}${round(point.x)} ${round(point.y)}`).join("");
}

function path(d, stroke, width, more = {}) {
  return draw("path", { d, style: { stroke, strokeWidth: String(width), ...more } });
}

// Paths for things that have a job, one for each shade, the best on top. What is not shown is faint.
function shaded(svg, things, toPath, width) {
  const of = shades(), groups = Array.from({ length: SHADES }, () => []), faint = [];
  for (const thing of things) (isShown(thing.job) ? groups[of.get(thing.job.number)] : faint).push(thing);
  if (faint.length) svg.append(path(toPath(faint), "var(--faint)", typeof width === "function" ? width(SHADES) : width, { opacity: "0.6" }));
  for (let index = SHADES - 1; index >= 0; index -= 1) {
    if (groups[index].length) {
      const drawn = path(toPath(groups[index]), shade(index), typeof width === "function" ? width(index) : width);
      drawn.setAttribute("class", "shade");
      svg.append(drawn);
    }
  }
}

// The same in the colour of a state.
function marked(svg, things, toPath, state, width) {
  const faint = things.filter((thing) => !isShown(thing.job)), kept = things.filter((thing) => isShown(thing.job));
  if (faint.length) svg.append(path(toPath(faint), "var(--faint)", width));
  if (!kept.length) return;
  const drawn = path(toPath(kept), `var(--${state})`, width);
  drawn.setAttribute("class", state);
  svg.append(drawn);
}

// Axes around a box; returns where fractions of them lie.
function frame(svg, width, height, x, y, names, room = {}) {
  const yTicks = y.ticks(Math.max(2, Math.floor(height / 55)));
  const widest = Math.max(...yTicks.map((tick) => cut(tick.text, 14).length), 2);
  const box = { left: 18 + widest * 6.6, right: width - 14, top: 22, bottom: height - 36 - (room.below || 0) };
  const at = { x: (share) => box.left + share * (box.right - box.left), y: (share) => box.bottom - share * (box.bottom - box.top) };
  for (const tick of yTicks) {
    const level = at.y(tick.at);
    svg.append(draw("line", { class: "tick", x1: box.left, x2: box.right, y1: level, y2: level }));
    svg.append(draw("text", { x: box.left - 7, y: level + 4, "text-anchor": "end" }, cut(tick.text, 14)));
  }
  for (const tick of fitting(x, box.right - box.left)) {
    const place = at.x(tick.at);
    svg.append(draw("line", { class: "axis", x1: place, x2: place, y1: height - 36, y2: height - 32 }));
    const half = tick.text.length * 3.3;
    svg.append(draw("text", { x: Math.min(width - half, Math.max(half, place)), y: height - 20, "text-anchor": "middle" }, tick.text));
  }
  svg.append(draw("line", { class: "axis", x1: box.left, x2: box.right, y1: height - 36, y2: height - 36 }));
  svg.append(draw("text", { class: "name", x: box.right, y: height - 3, "text-anchor": "end" }, cut(names.x, Math.floor(width / 8))));
  if (names.y) svg.append(draw("text", { class: "name", x: 0, y: 11 }, cut(names.y, Math.floor(width / 8))));
  return { box, at };
}

// Ticks whose texts do not touch each other.
function fitting(scale, width) {
  let count = Math.max(2, Math.floor(width / 60));
  for (; count > 1; count -= 1) {
    const found = scale.ticks(count).map((tick) => ({ ...tick, text: cut(tick.text, 12) }));
    const clear = found.every((tick, index) => {
      if (!index) return true;
      const before = found[index - 1];
      return (tick.at - before.at) * width > (tick.text.length + before.text.length) * 3.4 + 8;
    });
    if (clear) return found;
  }
  return scale.ticks(1).slice(0, 1).map((tick) => ({ ...tick, text: cut(tick.text, 12) }));
}

function better(one, other) {
  return goal().mode === "max" ? one > other : one < other;
}

function direction(objective = goal()) {
  return `${objective.metric}, ${objective.mode === "max" ? "more" : "less"} is better`;
}

function legend(...entries) {
  const items = entries.filter(Boolean).map(([mark, text]) => {
    const svg = draw("svg", { width: 14, height: 12 });
    svg.append(mark);
    return make("span", {}, svg, text);
  });
  return make("div", { class: "legend" }, ...items);
}

const middle = [{ x: 7, y: 6 }];
const rampNote = () => make("span", {}, "best", make("span", { class: "ramp" }), "poorest");

// -------------------------------------------------------------------------------------- history

function history() {
  const failed = jobs.filter((job) => ["failed", "cancelled"].includes(job.state));
  const isLost = (job) => ended(job) && value(job) === null && (job.state !== "pruned" || lastValue(job) === null);
  const below = jobs.some(isLost) ? 20 : 0;
  const numbers = jobs.map((job) => job.number);
  const x = numeric({ log: false, low: Math.min(...numbers) - 0.5, high: Math.max(...numbers) + 0.5, whole: true });

  const holder = plot("history", 330, (svg, width, height) => {
    const y = numeric(goal());
    const { box, at } = frame(svg, width, height, x, y, { x: "job", y: direction() }, { below });
    const points = [];
    const place = (job, level) => ({ job, x: at.x(x.at(job.number)), y: level });
    const scored = [], stopped = [], running = [], lost = [];
    for (const job of jobs) {
      const found = lastValue(job);
      if (value(job) !== null) scored.push(place(job, at.y(y.at(found))));
      else if (job.state === "running" && found !== null) running.push(place(job, at.y(y.at(found))));
      else if (job.state === "pruned" && found !== null) stopped.push(place(job, at.y(y.at(found))));
      else if (isLost(job)) lost.push(place(job, box.bottom + 12));
    }
    const size = jobs.length > 400 ? 4.5 : jobs.length > 60 ? 6.5 : 9;
    marked(svg, lost, (some) => crosses(some, jobs.length > 400 ? 2.5 : 3.5), "failed", 1.6);
    marked(svg, stopped, (some) => triangles(some, size / 1.7), "pruned", 1.3);
    shaded(svg, scored, dots, size);
    marked(svg, running, dots, "running", size);
    const steps = bestSoFar(scored);
    if (steps.length) svg.append(draw("path", { class: "mark-best", d: line([...steps, { x: box.right, y: steps.at(-1).y }]), style: { strokeWidth: "2" } }));
    points.push(...scored, ...stopped, ...running, ...lost);
    return { points };
  });
  const scale = numeric(goal()), off = jobs.filter((job) => !isLost(job) && lastValue(job) !== null && scale.off(lastValue(job))).length;
  return [
    holder,
    legend(
      [draw("path", { class: "mark-best", d: "M0 6h14", style: { strokeWidth: "2" } }), "the best so far"],
      [path(dots(middle), shade(2), 7), "succeeded"],
      jobs.some((job) => job.state === "pruned") && [path(triangles(middle), "var(--pruned)", 1.3), "pruned: its last value"],
      failed.length && [path(crosses(middle), "var(--failed)", 1.6), "failed or stopped"],
      jobs.some((job) => job.state === "running") && [path(dots(middle), "var(--running)", 7), "running"],
    ),
    off ? make("p", { class: "note" }, `${whole(off)} of the jobs lie beyond the axis and are drawn at its end.`) : null,
  ];
}

function ended(job) {
  return ["succeeded", "failed", "pruned", "cancelled"].includes(job.state);
}

function bestSoFar(points) {
  const steps = [];
  let best = null;
  for (const point of points) {
    const found = value(point.job);
    if (best !== null && !better(found, best)) continue;
    if (steps.length) steps.push({ x: point.x, y: steps.at(-1).y });
    steps.push(point);
    best = found;
  }
  return steps;
}

// ----------------------------------------------------------------------------------- importance

function importance() {
  const holder = make("div");
  const show = () => {
    const { shares, told } = data.importance[chosen.objective];
    const rows = shares.slice(0, 14).flatMap(([name, share]) => [
      make("span", { class: "key mono" }, name),
      make("div", { class: "track" }, make("div", { class: "fill", style: { width: `${share * 100}%` } })),
      make("span", { class: "number" }, `${Math.round(share * 100)}%`),
    ]);
    holder.replaceChildren(make("div", { class: "shares" }, ...rows), make("p", { class: "note", style: { marginTop: "10px" } }, told));
  };
  listeners.change.push(show);
  show();
  return holder;
}

// ------------------------------------------------------------------------ parallel coordinates

function scaleOf(param) {
  return param.options ? discrete(param.options) : numeric(param);
}

// The parameters by importance, then the objectives, the one that is chosen last.
function lanes() {
  const shares = new Map(data.importance[chosen.objective].shares);
  const params = data.params.map((param, index) => ({ name: param.name, scale: scaleOf(param), of: (job) => job.params[index], share: shares.get(param.name) ?? 0 }));
  params.sort((a, b) => b.share - a.share);
  const goals = data.objectives.map((one, index) => ({ name: one.metric, scale: numeric(one), of: (job) => value(job, index), index }));
  goals.sort((a, b) => (a.index === chosen.objective) - (b.index === chosen.objective) || a.index - b.index);
  return [...params, ...goals];
}

for (const lane of data.objectives.length ? lanes() : []) axes.set(lane.name, (job) => lane.scale.at(lane.of(job)));

function parallel() {
  const count = data.params.length + data.objectives.length;
  return plot("parallel", 360, (svg, width, height) => {
    const found = lanes(), top = 40, bottom = height - 14, left = 70, right = width - 90;
    found.forEach((lane, index) => { lane.x = count > 1 ? left + (index * (right - left)) / (count - 1) : (left + right) / 2; });
    const level = (share) => bottom - share * (bottom - top);
    const drawn = new Map(), points = [];
    for (const job of ranking()) {
      const through = [];
      for (const lane of found) {
        const share = lane.scale.at(lane.of(job));
        if (share !== null) through.push({ job, x: lane.x, y: level(share) });
      }
      drawn.set(job, line(through));
      points.push(...through);
    }
    const things = [...drawn].map(([job, d]) => ({ job, d }));
    shaded(svg, things, (some) => some.map((thing) => thing.d).join(""), (index) => (jobs.length > 300 && index > 1 ? 0.7 : 1.5));
    const best = ranking()[0];
    if (best && isShown(best)) svg.append(draw("path", { class: "mark-best", d: drawn.get(best), style: { strokeWidth: "2.5" } }));
    for (const lane of found) axis(svg, lane, top, bottom);
    return { points, trace: (job) => drawn.get(job) };
  }, 130 * count);
}

function axis(svg, lane, top, bottom) {
  const level = (share) => bottom - share * (bottom - top);
  svg.append(draw("line", { class: "axis", x1: lane.x, x2: lane.x, y1: top, y2: bottom }));
  svg.append(draw("text", { class: "name", x: lane.x, y: 16, "text-anchor": "middle" }, cut(lane.name, 15)));
  for (const tick of lane.scale.ticks(6)) {
    const text = draw("text", { x: lane.x + 6, y: level(tick.at) + 4, class: "over" }, cut(tick.text, 14));
    svg.append(draw("line", { class: "axis", x1: lane.x - 3, x2: lane.x + 3, y1: level(tick.at), y2: level(tick.at) }), text);
  }
  const range = chosen.ranges.get(lane.name);
  const brush = draw("rect", { class: "brush", x: lane.x - 7, width: 14, y: 0, height: 0 });
  const cover = (low, high) => { brush.setAttribute("y", level(high)); brush.setAttribute("height", level(low) - level(high)); };
  if (range) cover(...range);
  const hit = draw("rect", { class: "hit", x: lane.x - 14, width: 28, y: top - 8, height: bottom - top + 16, style: { touchAction: "none" } });
  hit.append(draw("title", {}, `drag along ${lane.name} to choose jobs; click to choose all again`));
  svg.append(brush, hit);
  let from = null;
  const share = (event) => Math.min(1, Math.max(0, (bottom - (event.clientY - svg.getBoundingClientRect().top)) / (bottom - top)));
  hit.addEventListener("pointerdown", (event) => { from = share(event); hit.setPointerCapture(event.pointerId); });
  hit.addEventListener("pointermove", (event) => { if (from !== null) cover(...[from, share(event)].sort((a, b) => a - b)); });
  hit.addEventListener("click", (event) => event.stopPropagation());
  hit.addEventListener("pointerup", (event) => {
    const ends = [from, share(event)].sort((a, b) => a - b);
    from = null;
    if (ends[1] - ends[0] < 0.015) chosen.ranges.delete(lane.name);
    else chosen.ranges.set(lane.name, ends);
    tell("change");
  });
}

// --------------------------------------------------------------------------------------- slices

// A value for each parameter, spread a little sideways where values are few.
function slices() {
  const shares = new Map(data.importance[0].shares);
  const order = data.params.map((param, index) => ({ param, index, share: shares.get(param.name) ?? 0 }));
  order.sort((a, b) => b.share - a.share);
  const spread = (number) => ((number * 0.618034) % 1) - 0.5;
  const one = ({ param, index }) => plot("slice", 220, (svg, width, height) => {
    const few = param.options || param.ticks, ranked = ranking(), places = few ? few.length : 1;
    const crowded = few && ranked.length > 3 * places;
    const x = crowded && param.ticks ? inset(scaleOf(param), 0.09) : scaleOf(param), y = numeric(goal());
    const { box, at } = frame(svg, width, height, x, y, { x: param.name, y: "" });
    const sideways = crowded ? Math.min(26, (box.right - box.left) / (places * 2.4)) : 0;
    const points = [];
    for (const job of ranked) {
      const share = x.at(job.params[index]);
      if (share !== null) points.push({ job, x: at.x(share) + sideways * spread(job.number), y: at.y(y.at(value(job))) });
    }
    shaded(svg, points, dots, jobs.length > 300 ? 3.5 : jobs.length > 60 ? 5 : 7);
    if (sideways) svg.append(draw("path", { class: "median", d: medians(points, (point) => at.x(x.at(point.job.params[index])), sideways) }));
    return { points };
  });
  return make("div", { class: "plots" }, ...order.slice(0, 12).map(one));
}

// The same scale with some room at both ends.
function inset(scale, room) {
  const moved = (share) => (share === null ? null : room + share * (1 - 2 * room));
  return { ...scale, at: (value) => moved(scale.at(value)), ticks: (count) => scale.ticks(count).map((tick) => ({ ...tick, at: moved(tick.at) })) };
}

// A short line at the middle of the points of each place.
function medians(points, placeOf, sideways) {
  const groups = new Map();
  for (const point of points) {
    if (!isShown(point.job)) continue;
    const place = placeOf(point);
    groups.set(place, [...(groups.get(place) || []), point.y]);
  }
  return [...groups].filter(([, levels]) => levels.length > 2).map(([place, levels]) => {
    levels.sort((a, b) => a - b);
    const half = Math.floor(levels.length / 2), level = levels.length % 2 ? levels[half] : (levels[half - 1] + levels[half]) / 2;
    return `M${round(place - sideways * 0.7)} ${round(level)}h${round(sideways * 1.4)}`;
  }).join("");
}

// -------------------------------------------------------------------------------------- curves

const BRIGHT = 15; // curves that are drawn in colour

function curves() {
  const drawn = jobs.filter((job) => data.curves[job.number]);
  return plot("curves", 340, (svg, width, height) => {
    const x = numeric({ ...data.steps, whole: true }), y = numeric(data.heights);
    const { at } = frame(svg, width, height, x, y, { x: "step", y: direction(data.objectives[0]) });
    const points = [], paths = new Map();
    for (const job of drawn) {
      const [steps, values] = data.curves[job.number];
      const through = steps.map((step, index) => ({ job, x: at.x(x.at(step)), y: at.y(y.at(values[index])), step }));
      paths.set(job, line(through));
      points.push(...(isShown(job) ? through : []));
    }
    const ranked = ranking().filter((job) => paths.has(job) && isShown(job)), bright = ranked.slice(0, BRIGHT);
    const of = (some) => some.map((job) => paths.get(job)).join("");
    const rest = drawn.filter((job) => !bright.includes(job)), kept = rest.filter(isShown);
    svg.append(path(of(rest.filter((job) => !isShown(job))), "var(--faint)", 1, { opacity: "0.5" }));
    svg.append(path(of(kept), "var(--poor)", 1, { opacity: kept.length > 100 ? "0.55" : "0.9" }));
    svg.append(path(of(kept.filter((job) => job.state === "running")), "var(--running)", 1.5));
    bright.reverse().forEach((job, index) => {
      const first = index === bright.length - 1;
      svg.append(path(paths.get(job), first ? "var(--best)" : shade(Math.round(((bright.length - 1 - index) * 7) / BRIGHT)), first ? 2.5 : 1.6));
    });
    return { points, trace: (job) => paths.get(job) };
  });
}

// ---------------------------------------------------------------------------------- Pareto front

function pareto() {
  const pairs = data.objectives.flatMap((_, i) => data.objectives.slice(i + 1).map((__, j) => [i, i + 1 + j])).slice(0, 3);
  const one = ([i, j]) => plot("pareto", 340, (svg, width, height) => {
    const x = numeric(data.objectives[i]), y = numeric(data.objectives[j]);
    const { at } = frame(svg, width, height, x, y, { x: direction(data.objectives[i]), y: direction(data.objectives[j]) });
    const points = ranking().map((job) => ({ job, x: at.x(x.at(value(job, i))), y: at.y(y.at(value(job, j))) }));
    const ahead = points.filter((point) => point.job.front), others = points.filter((point) => !point.job.front);
    const kept = others.filter((point) => isShown(point.job));
    svg.append(path(dots(others.filter((point) => !isShown(point.job))), "var(--faint)", 5));
    svg.append(path(dots(kept), "var(--poor)", 6));
    ahead.sort((a, b) => a.x - b.x);
    if (data.objectives.length === 2) svg.append(draw("path", { class: "mark-best", d: stairs(ahead), style: { strokeWidth: "1.5", opacity: "0.6" } }));
    svg.append(draw("path", { class: "mark-best front", d: dots(ahead), style: { strokeWidth: "9" } }));
    return { points };
  });
  return make("div", { class: pairs.length > 1 ? "plots" : "" }, ...pairs.map(one));
}

// The border of what is reached: through the front, in steps on the side of what is worse.
function stairs(points) {
  const worse = data.objectives[0].mode === "max";
  return points.map((point, index) => {
    if (!index) return `M${round(point.x)} ${round(point.y)}`;
    return worse ? `V${round(point.y)}H${round(point.x)}` : `H${round(point.x)}V${round(point.y)}`;
  }).join("");
}

// ------------------------------------------------------------------------------------- timeline

function timeline() {
  const ran = jobs.filter((job) => job.begun !== null).sort((a, b) => a.begun - b.begun || a.number - b.number);
  const free = [];
  for (const job of ran) {
    let lane = free.findIndex((until) => until <= job.begun + 1e-6);
    if (lane < 0) lane = free.push(0) - 1;
    free[lane] = job.over;
    job.lane = lane;
  }
  const high = Math.max(4, Math.min(16, 260 / free.length)), height = Math.round(free.length * high) + 40;
  const last = Math.max(...ran.map((job) => job.over), 1);
  return plot("timeline", height, (svg, width) => {
    const place = (at) => 6 + (at / last) * (width - 20), points = [], bars = new Map();
    const boxes = new Map();
    for (const job of ran) {
      const x = place(job.begun), wide = Math.max(1.5, place(job.over) - x - 1), y = 4 + job.lane * high;
      const box = `M${round(x)} ${round(y)}h${round(wide)}v${round(high - Math.min(2, high / 4))}h${-round(wide)}z`;
      boxes.set(job, box);
      const group = isShown(job) ? job.state : "planned";
      bars.set(group, (bars.get(group) || "") + box);
      for (let step = 0; step <= wide; step += 12) points.push({ job, x: x + step, y: y + high / 2 });
    }
    for (const [state, d] of bars) svg.append(draw("path", { d, style: { fill: `var(--${state})`, opacity: "0.85" } }));
    const scale = { ticks: (count) => timeTicks(last, count) };
    for (const tick of fitting(scale, width - 20)) {
      svg.append(draw("text", { x: place(tick.value), y: height - 6, "text-anchor": !tick.value ? "start" : tick.at > 0.97 ? "end" : "middle" }, tick.text));
    }
    return { points, trace: (job) => boxes.get(job) };
  });
}

function timeTicks(last, count) {
  const step = [1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 604800, 2592000].find((one) => last / one <= count) || last;
  const found = [];
  for (let at = 0; at <= last; at += step) found.push({ value: at, at: at / last, text: lasted(at) });
  return found;
}

// ---------------------------------------------------------------------------------------- build

function choiceOfObjective() {
  if (data.objectives.length < 2) return null;
  const buttons = data.objectives.map((one, index) => make("button", {
    "aria-pressed": String(index === 0),
    on: { click: () => {
      chosen.objective = index;
      buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
      tell("change");
    } },
  }, one.metric));
  return make("div", { class: "toolbar" }, make("span", { class: "soft" }, "Charts by"), make("div", { class: "choice" }, ...buttons));
}

function build(main) {
  const scored = jobs.some((job) => job.values.length), curved = Object.keys(data.curves).length;
  const bar = choiceOfObjective();
  if (bar && scored) main.append(bar);
  if (scored && data.objectives.length > 1) main.append(card("Pareto front", "orange: no job is as good in all objectives and better in one", pareto()));
  if (scored && jobs.length > 1) {
    const told = data.importance.some((one) => one.shares.length);
    const note = told ? null : make("p", { class: "note" }, `Importance of the parameters: ${data.importance[0].told}`);
    main.append(make("div", { class: "pair" },
      card("Objective over jobs", "point at a job to find it in all charts; click to keep it", ...history(), note),
      told ? card("Importance", "how much of the differences each parameter explains", importance()) : null));
    if (data.params.length) {
      main.append(card("Parallel coordinates", "drag along an axis to choose jobs, here and everywhere", parallel(), make("div", { class: "legend" }, rampNote())));
      main.append(card("Each parameter alone", "dark lines are medians", slices()));
    }
  }
  if (curved) main.append(card("Learning curves", scored ? `the best ${BRIGHT} in colour` : "of all jobs that told how they went", curves()));
  if (jobs.some((job) => job.begun !== null)) main.append(card("When jobs ran", "a line for each job that ran at the same time", timeline()));
}
