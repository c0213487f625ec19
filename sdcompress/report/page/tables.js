/* Pages whose only moving parts are tables. */
for (const place of document.querySelectorAll("[data-table]")) {
  dataTable(place, DATA[place.dataset.table], { label: place.dataset.label, pageSize: 100 });
}
