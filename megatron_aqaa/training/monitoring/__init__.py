"""What watches a run and tells of it: telemetry, boards, guards, stragglers, the watchdog."""
