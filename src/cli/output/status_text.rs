//! The report of `bilayer status` and `bilayer inspect` as text.

use std::fmt::Write as _;

use super::format;
use crate::control::report::{HeaderReport, Report, SlotReport, ViewReport};

/// The report for people.
pub(in crate::cli) fn to_text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<18} {}", format::printable(value));
    };
    line("health", &report.health);
    if let Some(next) = &report.next {
        line("to do", next);
    }
    if let Some(view) = &report.view {
        view_lines(view, &mut line);
    }
    line("volume", &report.volume.display().to_string());
    for mount in &report.mounts {
        let mode = if mount.read_only { " (read-only)" } else { "" };
        line("mounted on", &format!("{}{mode}", mount.dir.display()));
    }
    for pid in &report.held_by {
        let what = format!("another mount namespace{}", format::processes(&[*pid]));
        line("mounted in", &what);
    }
    if let Some(daemon) = &report.daemon {
        line(
            "daemon",
            &format!("pid {}, version {}", daemon.pid, daemon.version),
        );
    }
    if let Some(original) = &report.copy_of {
        let what = format!("{} (not written to)", original.display());
        line("copy of", &what);
    }
    let state = match (&report.not_verified_because, report.verified) {
        (_, true) => "yes".to_owned(),
        (Some(why), false) => format!("no: {why}"),
        (None, false) => "no".to_owned(),
    };
    line("verified", &state);
    header_lines(&report.header, report.verified, &mut line);
    if let Some(fingerprint) = &report.fingerprint {
        line("fingerprint", fingerprint);
    }
    if let Some(check) = &report.key_check {
        let when = check.checked.as_deref().unwrap_or("at an unknown time");
        let how = match &check.error {
            None => "in order".to_owned(),
            Some(error) => format!("failed: {error}"),
        };
        line("key check", &format!("{how} ({when})"));
    }
    if let Some(keystore) = &report.platform_keystore {
        line("platform keystore", &keystore.display().to_string());
    }
    if let Some(record) = &report.record {
        let clean = if record.clean { "clean" } else { "not clean" };
        line(
            "last known commit",
            &format!("{} ({clean})", record.commit_sequence),
        );
        if let Some(directory) = &record.directory {
            line("known directory", &directory.display().to_string());
        }
        line(
            "record written",
            record.written.as_deref().unwrap_or("never"),
        );
    }
    for layer in &report.layers {
        let hardware = match layer.accelerated {
            Some(true) => ", by the processor's own instructions",
            Some(false) => ", WITHOUT the processor's own instructions",
            None => "",
        };
        let how = format!("{}, {}{hardware}", layer.algorithm, layer.implementation);
        line(
            &format!(
                "layer {}",
                layer.layer.split(' ').next().unwrap_or_default()
            ),
            &how,
        );
    }
    for (name, count) in [("snapshots", report.snapshots), ("images", report.images)] {
        if let Some(count) = count {
            line(name, &count.to_string());
        }
    }
    if let Some(serde_json::Value::Object(usage)) = &report.usage {
        for (name, value) in usage.iter().filter(|(_, value)| !value.is_null()) {
            line(&name.replace('_', " "), value.to_string().trim_matches('"'));
        }
    }
    text
}

fn view_lines(view: &ViewReport, line: &mut impl FnMut(&str, &str)) {
    line(view.kind.name(), &view.name);
    if let Some(from) = &view.from {
        line("made from", &format!("snapshot {from}"));
    }
    if !view.description.is_empty() {
        line("description", &view.description);
    }
    if let Some(created) = view.created {
        line("created", &format::local_time(created));
    }
    for (name, bytes) in [("refers", view.refers_bytes), ("used", view.used_bytes)] {
        if let Some(bytes) = bytes {
            line(name, &format::size(bytes));
        }
    }
    if let Some(inodes) = view.inodes {
        line("inodes in it", &inodes.to_string());
    }
}

fn header_lines(header: &HeaderReport, verified: bool, line: &mut impl FnMut(&str, &str)) {
    line("volume id", &header.volume_id);
    line("incarnation", &header.incarnation);
    line(
        "format",
        &format!("{}, superblock {}", header.format, header.sequence),
    );
    line("key mode", &header.key_mode);
    if let Some(provenance) = &header.provenance {
        let mark = if verified { "" } else { " (unverified)" };
        // Only the provenance of a deployed volume names an image.
        let how = match provenance.contains('/') {
            true => "deployed from",
            false => "was a copy of",
        };
        line(how, &format!("{provenance}{mark}"));
        if header.foreign {
            let why = "came from elsewhere: mounts nosuid,nodev unless suid,dev is asked for";
            line("trust", &format!("{why}{mark}"));
        }
    }
    for slot in &header.slots {
        for text in slot_lines(slot) {
            let text = text.trim_start_matches("slot ");
            line("slot", text);
        }
    }
    for set in &header.key_sets {
        let state = if set.active { "active" } else { "read-only" };
        line(
            "key set",
            &format!("{} (epoch {}, {state})", set.id, set.epoch),
        );
        for (role, wraps) in [
            ("  customer", &set.customer),
            ("  infrastructure", &set.infrastructure),
        ] {
            for wrap in wraps {
                let version = &wrap.key_version;
                line(
                    role,
                    &format!("{} version {version}, {}", wrap.provider, wrap.algorithm),
                );
            }
        }
    }
}

/// A slot for people: one line for the slot and one for each key.
pub(crate) fn slot_lines(slot: &SlotReport) -> Vec<String> {
    let mut lines = Vec::with_capacity(slot.keys.len());
    for (place, key) in slot.keys.iter().enumerate() {
        let version = key
            .version
            .as_deref()
            .map(|name| format!(" version {name}"));
        let bits = key
            .bits
            .map_or(String::new(), |bits| format!(", {bits} bits"));
        let label = slot.label.as_deref().map(|label| format!(" ({label})"));
        lines.push(format!(
            "slot {}{}: {}{}, {}{bits}, fingerprint {}{}",
            slot.number,
            label.unwrap_or_default(),
            slot.provider,
            version.unwrap_or_default(),
            key.algorithm,
            key.fingerprint.as_deref().unwrap_or("not known"),
            match place {
                0 => "",
                _ => ", being replaced",
            }
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::report::tests::odd_report;

    #[test]
    fn text_is_printable() {
        let report = odd_report();
        let text = to_text(&report);
        assert!(
            !text.chars().any(|c| c.is_control() && c != '\n'),
            "{text:?}"
        );
        for wanted in [
            "no: no key",
            "key mode           platform-managed",
            "files              3",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(!text.contains("latched"));
    }
}
