/* The pair viewer, and the report's two long tables. */

const $ = (id) => document.getElementById(id);
const viewer = { key: null, share: 50, difference: false, table: null };

function setShare(share) {
  viewer.share = Math.min(100, Math.max(0, share));
  $("stage").style.setProperty("--share", `${viewer.share}%`);
  $("stage").setAttribute("aria-valuenow", Math.round(viewer.share));
  $("stage").setAttribute("aria-valuetext", `${Math.round(viewer.share)} % original`);
}

function setDifference(on) {
  viewer.difference = on;
  $("stage").classList.toggle("difference", on);
  $("toggle-difference").setAttribute("aria-pressed", String(on));
}

function showPair(key) {
  const row = DATA.samples.rows.find((each) => each.key === key);
  if (!row) return;
  viewer.key = key;
  const pictures = DATA.pictures[key];
  $("stage").hidden = !pictures;
  $("no-picture").hidden = Boolean(pictures);
  if (pictures) {
    for (const side of ["original", "compressed"]) {
      const image = $(`shown-${side}`);
      image.src = pictures[side];
      image.alt = `${side} picture of: ${textOf(row.cells[0])}`;
      image.onload = () => $("stage").classList.toggle("small", image.naturalWidth < 256);
    }
  }
  $("viewer-prompt").textContent = textOf(row.cells[0]);
  $("viewer-figures").replaceChildren(...DATA.samples.columns.slice(1).flatMap((column, at) => {
    const text = textOf(row.cells[at + 1]);
    return text ? [element("div", {}, element("dt", {}, column.name), element("dd", {}, text))] : [];
  }));
  const order = viewer.table.rows();
  const at = order.findIndex((each) => each.key === key);
  $("viewer-place").textContent = at < 0 ? "Filtered out below" : `Pair ${at + 1} of ${order.length}`;
  viewer.table.select(key);
}

function step(by) {
  const order = viewer.table.rows();
  if (!order.length) return;
  const at = order.findIndex((row) => row.key === viewer.key);
  showPair(order[Math.min(order.length - 1, Math.max(0, at + by))].key);
}

function thumbnails(row) {
  const cell = element("td", { class: "thumbnails" });
  const pictures = DATA.pictures[row.key];
  const button = element("button", { type: "button", class: "thumbnail", "aria-label": `Show the pair of: ${textOf(row.cells[0])}` });
  if (pictures) {
    for (const side of ["original", "compressed"]) {
      button.append(element("img", { src: pictures[side], alt: "", width: 40, height: 40, loading: "lazy", decoding: "async" }));
    }
  } else button.append("show");
  cell.append(button);
  return cell;
}

function openRow(row) {
  showPair(row.key);
  $("viewer").scrollIntoView({ block: "nearest" });
}

function startViewer() {
  const stage = $("stage");
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    setShare((100 * (event.clientX - box.left)) / box.width);
  };
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) follow(event);
  });
  stage.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    setShare(viewer.share + moves[event.key]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "d") setDifference(!viewer.difference);
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });
  $("toggle-difference").addEventListener("click", () => setDifference(!viewer.difference));
  $("previous-pair").addEventListener("click", () => step(-1));
  $("next-pair").addEventListener("click", () => step(1));
  const gain = () => stage.style.setProperty("--gain", $("gain").value);
  $("gain").addEventListener("change", gain);
  gain();
  setShare(50);
}

for (const place of document.querySelectorAll("[data-table]")) {
  const name = place.dataset.table;
  const isSamples = name === "samples";
  const table = dataTable(place, DATA[name], {
    label: place.dataset.label,
    pageSize: isSamples ? 20 : 25,
    pictures: isSamples && thumbnails,
    onSelect: isSamples && openRow,
  });
  if (isSamples) {
    viewer.table = table;
    $("viewer").hidden = false;
    startViewer();
    if (DATA.samples.rows.length) showPair(DATA.samples.rows[0].key);
  }
}
