//! A scripted life of snapshots and images, with a cut at every call of the store.
