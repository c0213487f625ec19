"use strict";
/* Tables of any length: sorted, filtered and shown a page at a time. All text goes in as text, never as HTML. */

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const textOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);

function compareCells(a, b) {
  if (!Array.isArray(a)) return a.localeCompare(b);
  return a[1] - b[1];
}

function dataTable(place, spec, options) {
  const size = options.pageSize || 25;
  const state = { rows: spec.rows, page: 0, column: null, descending: false, key: null };
  const haystack = new Map(spec.rows.map((row) => [row, row.cells.map(textOf).join(" ").toLowerCase()]));
  const filter = element("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${options.label}` });
  const count = element("span", { class: "count", "aria-live": "polite" });
  const body = element("tbody");
  const headers = spec.columns.map((column, index) => {
    const button = element("button", { type: "button" }, column.name);
    const header = element("th", { scope: "col", class: column.kind, "aria-sort": "none" }, button);
    button.addEventListener("click", () => sortBy(index));
    return header;
  });
  const lead = options.pictures ? [element("th", { scope: "col" }, "pictures")] : [];
  const previous = element("button", { type: "button", class: "button" }, "Previous page");
  const next = element("button", { type: "button", class: "button" }, "Next page");
  const pager = element("div", { class: "buttons pager" }, previous, next);
  place.append(
    element("div", { class: "table-tools" }, filter, count),
    element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.label },
      element("table", {}, element("thead", {}, element("tr", {}, ...lead, ...headers)), body)),
    pager);
  filter.addEventListener("input", () => { state.page = 0; update(); });
  previous.addEventListener("click", () => { state.page -= 1; draw(); });
  next.addEventListener("click", () => { state.page += 1; draw(); });

  function sortBy(index) {
    /* Numbers begin with the smallest, and a second click turns the order around. */
    state.descending = state.column === index ? !state.descending : false;
    state.column = index;
    state.page = 0;
    headers.forEach((header, at) => header.setAttribute(
      "aria-sort", at !== index ? "none" : state.descending ? "descending" : "ascending"));
    update();
  }

  function update() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    state.rows = spec.rows.filter((row) => words.every((word) => haystack.get(row).includes(word)));
    if (state.column !== null) {
      const missing = (row) => Array.isArray(row.cells[state.column]) && row.cells[state.column][1] === null;
      const known = state.rows.filter((row) => !missing(row));
      known.sort((a, b) => compareCells(a.cells[state.column], b.cells[state.column]));
      if (state.descending) known.reverse();
      state.rows = [...known, ...state.rows.filter(missing)];
    }
    draw();
    if (options.onOrder) options.onOrder(state.rows);
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(state.rows.length / size));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const first = state.page * size;
    const shown = state.rows.slice(first, first + size);
    body.replaceChildren(...shown.map(drawRow));
    count.textContent = shown.length
      ? `${first + 1}–${first + shown.length} of ${state.rows.length}` : `none of ${spec.rows.length} matches`;
    pager.hidden = pages === 1;
    previous.disabled = state.page === 0;
    next.disabled = state.page === pages - 1;
  }

  function drawRow(row) {
    const cells = row.cells.map((cell, index) => {
      const text = textOf(cell);
      const missing = Array.isArray(cell) && cell[1] === null;
      const kind = spec.columns[index].kind + (missing ? " missing" : "");
      const inside = index === 0 ? element("span", { class: "clamp", title: text }, text) : text;
      return element(index ? "td" : "th", index ? { class: kind } : { class: kind, scope: "row" }, inside);
    });
    const made = element("tr", { class: row.className || null });
    if (row.key !== undefined) made.dataset.key = row.key;
    if (options.pictures) made.append(options.pictures(row));
    made.append(...cells);
    if (options.onSelect) made.addEventListener("click", () => options.onSelect(row));
    made.classList.toggle("selected", row.key !== undefined && row.key === state.key);
    return made;
  }

  update();
  return {
    rows: () => state.rows,
    select(key) {
      state.key = key;
      const at = state.rows.findIndex((row) => row.key === key);
      const page = Math.floor(at / size);
      if (at >= 0 && page !== state.page) { state.page = page; draw(); return; }
      for (const row of body.children) row.classList.toggle("selected", Number(row.dataset.key) === key);
    },
  };
}

function copyText(button, text) {
  const done = () => {
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  };
  const byHand = () => {
    const field = element("textarea", { class: "offscreen", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    if (document.execCommand("copy")) done();
    field.remove();
    button.focus();
  };
  if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, byHand);
  else byHand();
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => copyText(button, document.getElementById(button.dataset.copy).textContent));
}

const DATA = JSON.parse(document.getElementById("data").textContent);
