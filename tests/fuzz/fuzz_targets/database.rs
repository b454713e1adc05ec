#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bilayer_fuzz::database::target(data));
