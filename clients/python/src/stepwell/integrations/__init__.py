"""Ready-made reporting for other libraries. Each module needs its library, and none of them is imported unless asked for."""
