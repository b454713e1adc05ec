//! The faulty store.
