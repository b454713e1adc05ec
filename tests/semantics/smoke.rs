use crate::support::*;
#[test]
fn smoke() {
    let m = Mount::new();
    let d = m.mkdir(ROOT, "d");
    let f = m.file(d, "f", &pattern(1, 0, 10_000));
    m.file(ROOT, "small", b"hello");
    assert_eq!(m.contents(f), pattern(1, 0, 10_000));
    let m = m.reopen();
    assert_eq!(m.contents(m.at("d/f")), pattern(1, 0, 10_000));
    let m = m.kill();
    assert_eq!(m.contents(m.at("small")), b"hello");
    m.finish();
}
