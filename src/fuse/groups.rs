//! The groups of who asks, which a request does not carry: from `/proc/PID/status` (proc_pid_status(5)).

/// Supplementary groups of a process; none where it cannot be told.
pub(super) fn groups_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    groups_in(&status)
}

fn groups_in(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let words = line.unwrap_or_default().split_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_line() {
        assert_eq!(
            groups_in("Name:\tx\nGroups:\t4 24 4294967294 \nNStgid:\t1"),
            [4, 24, u32::MAX - 1]
        );
        assert!(groups_in("Groups:\t \n").is_empty());
        assert!(groups_in("").is_empty());
    }
}
