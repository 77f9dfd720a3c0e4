"""Who calls, and what they may use: tenants, their keys, the rules, and the audit log."""
