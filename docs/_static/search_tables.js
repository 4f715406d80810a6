"use strict";
// A search field above every long table of the site (the census, the rules): words that a row has to
// contain, in any order. Without scripts the whole table is shown.
(() => {
  const LONG = 8;
  const searchable = (table) => {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    if (rows.length <= LONG) return;
    const line = document.createElement("p");
    const search = document.createElement("input");
    const count = document.createElement("span");
    search.type = "search";
    search.name = "search";
    search.placeholder = `Search ${rows.length} rows`;
    search.setAttribute("aria-label", "Search this table");
    count.setAttribute("role", "status");
    line.append(search, " ", count);
    table.before(line);
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown} of ${rows.length}` : "";
    });
  };
  window.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("article table, main table").forEach(searchable);
  });
})();
