"""What airspeed velocity measures: ``asv.conf.json`` names this folder."""
