"""How training goes: parameter groups and schedules."""
