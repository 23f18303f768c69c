"""What every program's command line shares: flags, terminal, interrupts, exit statuses."""
