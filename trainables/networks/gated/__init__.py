"""Residual networks whose blocks have gates, their gates and routers."""
