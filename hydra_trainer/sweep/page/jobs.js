// The table of all jobs, the job that is kept in sight, and the start of the page.

const PART = 150; // rows that are added at once
const STATES = ["succeeded", "failed", "pruned", "cancelled", "running", "pending", "planned", "unknown"];

function columns() {
  const found = [
    { name: "job", of: (job) => job.number },
    { name: "state", of: (job) => STATES.indexOf(job.state), show: (job) => make("span", { class: `state is-${job.state}` }, job.state) },
  ];
  data.objectives.forEach((one, index) => found.push({
    name: one.metric,
    of: (job) => (job.values.length ? job.values[index] : null),
    show: (job) => (job.values.length ? shown(job.values[index]) : index === 0 && job.last !== null ? `(${shown(job.last)})` : ""),
    down: one.mode === "max",
  }));
  data.params.forEach((param, index) => found.push({ name: param.short, title: param.name, of: (job) => job.params[index] }));
  found.push({ name: "time", of: (job) => job.seconds, show: (job) => lasted(job.seconds) });
  if (new Set(jobs.map((job) => job.launcher)).size > 1) found.push({ name: "where", of: (job) => job.launcher });
  if (jobs.some((job) => job.reason)) found.push({ name: "reason", of: (job) => job.reason || null });
  return found;
}

function table() {
  const shownColumns = columns(), rows = new Map(), body = make("tbody");
  const order = { column: data.objectives.length ? 2 : 0, down: Boolean(data.objectives.length && shownColumns[2].down) };
  const best = data.objectives.length ? ranking()[0] : null;
  const isFirst = (job) => (data.objectives.length > 1 ? job.front : job === best);
  let visible = [];

  for (const job of jobs) {
    const cells = shownColumns.map((column) => {
      const content = column.show ? column.show(job) : shown(column.of(job));
      return make("td", typeof content === "string" && content.length > 24 ? { title: content } : {}, content);
    });
    const row = make("tr", { class: isFirst(job) ? "first" : null, tabindex: "0", "data-job": job.number, on: {
      click: () => toggle(job),
      keydown: (event) => { if (event.key === "Enter" && event.target === row) toggle(job); },
      pointerenter: () => hover(job),
      pointerleave: () => hover(null),
    } }, ...cells);
    rows.set(job, { row, more: null });
  }

  const heads = shownColumns.map((column, index) => make("th", { scope: "col", title: column.title ?? null }, make("button", { on: { click: () => {
    order.down = order.column === index ? !order.down : Boolean(column.down);
    order.column = index;
    arrange();
  } } }, column.name)));

  function toggle(job) {
    const entry = rows.get(job);
    if (entry.more) {
      entry.more.remove();
      entry.more = null;
    } else {
      entry.more = make("tr", { class: "more" }, make("td", { colspan: shownColumns.length }, details(job)));
      entry.row.after(entry.more);
    }
  }

  function arrange() {
    const column = shownColumns[order.column], sign = order.down ? -1 : 1;
    const compare = (a, b) => {
      const [one, other] = [column.of(a), column.of(b)];
      if (one === null || other === null) return (one === null) - (other === null) || a.number - b.number;
      const by = typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
      return sign * by || a.number - b.number;
    };
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== order.column ? "none" : order.down ? "descending" : "ascending");
    });
    visible = jobs.filter(isShown).sort(compare);
    holder.scrollTop = 0;
    body.replaceChildren();
    hold(PART);
    count.textContent = visible.length === jobs.length ? `${whole(jobs.length)} ${jobs.length === 1 ? "job" : "jobs"}` : `${whole(visible.length)} of ${whole(jobs.length)} jobs`;
    clear.hidden = !chosen.ranges.size && visible.length === jobs.length;
  }

  // Hold at least so many rows in the page: a browser takes long to lay out thousands of them.
  function hold(least) {
    const more = visible.slice(held(), least);
    body.append(...more.flatMap((job) => [rows.get(job).row, rows.get(job).more].filter(Boolean)));
  }

  function held() {
    return body.querySelectorAll("tr:not(.more)").length;
  }

  const search = make("input", { type: "search", placeholder: "filter: words that a job must hold, such as mlp 0.01", "aria-label": "filter", on: { input: () => {
    chosen.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    tell("change");
  } } });
  const toggles = STATES.filter((state) => jobs.some((job) => job.state === state)).map((state) => {
    const button = make("button", { class: `toggle is-${state}`, "aria-pressed": "true", on: { click: () => {
      const on = !chosen.states.has(state);
      if (on) chosen.states.add(state);
      else chosen.states.delete(state);
      button.setAttribute("aria-pressed", String(on));
      tell("change");
    } } }, state);
    return button;
  });
  const count = make("span", { class: "note" });
  const clear = make("button", { class: "button", hidden: "", on: { click: () => {
    search.value = "";
    chosen.words = [];
    chosen.ranges.clear();
    chosen.states = new Set(jobs.map((job) => job.state));
    toggles.forEach((button) => button.setAttribute("aria-pressed", "true"));
    tell("change");
  } } }, "choose all");

  let marked = null;
  listeners.look.push(() => {
    if (marked) marked.classList.remove("hover");
    marked = chosen.hovered ? rows.get(chosen.hovered).row : null;
    if (marked) marked.classList.add("hover");
  });
  listeners.change.push(arrange);

  const holder = make("div", { class: "jobs", on: { scroll: () => {
    if (holder.scrollTop + 2 * holder.clientHeight > holder.scrollHeight) hold(held() + PART);
  } } }, make("table", { class: "all" }, make("thead", {}, make("tr", {}, ...heads)), body));
  const section = card("All jobs", "click a name to sort, a job to see more", make("div", { class: "filters" }, search, ...(toggles.length > 1 ? toggles : []), count, clear), holder);
  arrange();

  show = (job) => {
    if (!isShown(job)) clear.click();
    hold(visible.indexOf(job) + 20);
    if (!rows.get(job).more) toggle(job);
    rows.get(job).row.scrollIntoView({ block: "center" });
  };
  return section;
}

// Bring a job into sight in the table. Set once there is one.
let show = () => {};

function details(job) {
  const lines = [["command", commandBox(job.command)]];
  const text = (name, found) => { if (found) lines.push([name, make("span", { class: "mono" }, found)]); };
  text("job", job.name);
  text("handle", job.handle);
  text("run directory", job.output);
  text("why", job.reason);
  const metrics = Object.entries(job.metrics).map(([name, found]) => `${name} ${shown(found)}`).join(" · ");
  text("metrics at the end", metrics);
  return make("dl", {}, ...lines.flatMap(([name, found]) => [make("dt", {}, name), make("dd", {}, found)]));
}

function commandBox(command) {
  const button = make("button", { class: "button", on: { click: (event) => { event.stopPropagation(); copy(command, button); } } }, "copy");
  return make("div", { class: "command", style: { marginTop: "0" } }, make("pre", {}, command), button);
}

function pinned() {
  const bar = make("div", { class: "pin", hidden: "" });
  listeners.look.push(() => {
    const job = chosen.pinned;
    bar.hidden = !job;
    if (!job) return;
    const found = job.values.map((one, index) => `${data.objectives[index].metric} ${shown(one)}`).join(", ");
    const copyButton = make("button", { class: "button", on: { click: () => copy(job.command, copyButton) } }, "copy its command");
    bar.replaceChildren(
      make("b", {}, `job ${job.number}`),
      make("span", { class: `state is-${job.state}` }, job.state),
      make("span", { class: "mono" }, found),
      copyButton,
      make("button", { class: "button", on: { click: () => show(job) } }, "see it in the table"),
      make("button", { class: "button", "aria-label": "let go", on: { click: () => pin(job) } }, "×"),
    );
  });
  return bar;
}

function start() {
  build(document.getElementById("charts"));
  document.getElementById("jobs").append(table());
  document.body.append(pinned());
  listeners.change.push(() => plots.forEach((one) => one.redraw()));
  listeners.look.push(() => plots.forEach((one) => one.look()));
  redraw();
  new ResizeObserver(() => redraw(plots.filter((one) => one.width !== one.holder.clientWidth))).observe(document.body);
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button.dataset.copy, button));
  }
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => show(byNumber.get(Number(button.dataset.show))));
  }
  for (const time of document.querySelectorAll("time")) {
    const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
    time.textContent = format.format(new Date(time.dateTime));
  }
}

start();
