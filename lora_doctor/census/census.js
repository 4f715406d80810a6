"use strict";
(() => {
  const rows = [...document.querySelectorAll(".rows tbody")];
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
  // What is looked for stands in the address, so that a link can be sent to somebody.
  const remember = () => {
    const asked = new URLSearchParams();
    if (search.value) asked.set("search", search.value);
    if (filter.value) asked.set("filter", filter.value);
    history.replaceState(null, "", `#${asked}`);
  };
  const recall = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    search.value = asked.get("search") ?? "";
    filter.value = asked.get("filter") ?? "";
    if (filter.selectedIndex < 0) filter.value = "";
    show();
  };
  for (const [element, event] of [[search, "input"], [filter, "change"]]) {
    element.addEventListener(event, () => { show(); remember(); });
  }
  window.addEventListener("hashchange", recall);
  recall();
})();
