"use strict";
(() => {
  const rows = [...document.querySelectorAll(".rows tbody tr")];
  const search = document.getElementById("search");
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  document.querySelector(".search").hidden = false;
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [column, status] = filter.value.split(":");
    let shown = 0;
    for (const row of rows) {
      const text = row.dataset.text;
      const fits = words.every((word) => text.includes(word));
      const cell = column && row.querySelector(`[data-column="${column}"]`);
      const kept = fits && (!cell || cell.classList.contains("yes") === (status === "yes"));
      row.hidden = !kept;
      shown += kept;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", show);
  filter.addEventListener("change", show);
  show();
})();
