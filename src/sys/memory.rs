//! Memory that must not reach swap or a core dump.
