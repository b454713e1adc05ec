#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bilayer_test_support::fuzz_targets::export::target(data));
