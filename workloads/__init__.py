"""Who runs there: tenants' programs and traces. Imports ``node`` and below."""
