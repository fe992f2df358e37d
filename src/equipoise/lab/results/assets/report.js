"use strict";

// A figure is drawn when it comes near the screen, so that a page with many figures opens at once.
const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };

function draw(plot) {
  observer.unobserve(plot);
  const { data, layout } = JSON.parse(plot.querySelector("script").textContent);
  plot.replaceChildren();
  plot.commonRange = layout.yaxis?.range;
  const drawn = Plotly.newPlot(plot, data, layout, config);
  if (plot.closest(".linked").querySelector("[aria-pressed=true], .own:checked")) drawn.then(refresh);
}

const observer = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
  { rootMargin: "800px" },
);

const waiting = () => document.querySelectorAll(".plot:has(> script)");
waiting().forEach((plot) => observer.observe(plot));
addEventListener("beforeprint", () => waiting().forEach(draw));

// Only the names that are pressed in the legend show; with none pressed, all do.
function refresh(plot) {
  const section = plot.closest(".linked");
  const pressed = [...section.querySelectorAll("[aria-pressed=true]")].map((key) => key.dataset.key);
  const visible = plot.data.map((trace) => pressed.length === 0 || pressed.includes(trace.legendgroup));
  const own = section.querySelector(".own:checked") || !plot.commonRange;
  const range = own ? { "yaxis.autorange": true } : { "yaxis.range": [...plot.commonRange] };
  Plotly.update(plot, { visible }, range);
}

function refreshAll({ target }) {
  target.closest(".linked").querySelectorAll(".js-plotly-plot").forEach(refresh);
}

document.querySelectorAll(".own").forEach((box) => box.addEventListener("change", refreshAll));
document.querySelectorAll(".keys button").forEach((key) =>
  key.addEventListener("click", (event) => {
    key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") === "false");
    refreshAll(event);
  }),
);

// A click on the head of a column sorts the rows of the tasks by it; a second click turns the order around.
document.querySelectorAll("th .sort").forEach((button) =>
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const column = [...head.parentNode.children].indexOf(head);
    const down = head.getAttribute("aria-sort") === "ascending";
    head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = head.closest("table").querySelector("tbody.task");
    const key = (row) => row.children[column].dataset.sort;
    const order = (a, b) => (column === 0 ? key(a).localeCompare(key(b)) : Number(key(a)) - Number(key(b)));
    body.append(...[...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b))));
  }),
);
