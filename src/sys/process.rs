//! Processes, threads, CPUs and signals.
