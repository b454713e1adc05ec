//! Files and directories relative to an open directory.
