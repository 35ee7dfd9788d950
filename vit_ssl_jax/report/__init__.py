"""HTML reports and figures of finished runs."""
