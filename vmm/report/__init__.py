"""Reports: functions from results to text. They know neither kernel nor executor."""
