//! The attacker holds a key set that the victim's volume only reads with.
