"""How people see studies and processes: text, tables, JSON; nothing here changes anything."""
