//! Rollback detection: whether a volume is at least as new as the platform keystore knows it to be.
//!
//! For each volume the keystore remembers the incarnation, the newest superblock, and the newest
//! commit with the tags of page 0 of `meta`. The record is written after the state that it
//! describes is durable. So a volume may be newer than its record, after a power cut or when
//! writing the record failed, but it is never older. If it is older, somebody has put it back, and
//! it is refused.
//!
//! A volume that another machine has renewed (by accepting a restored copy there) comes back with
//! another incarnation. It is accepted if the known key set vouches for it and if it carries on a
//! state that is no older than the record.
//!
//! Not detected: a volume that was put back to a state no older than the record; an older keystore
//! put back together with an older volume; a volume that the keystore has never seen; single pages.

use super::header::HeaderContents;
use super::rollback::{LastKnown, Rollback};
use super::succession::Ancestry;
use crate::keys::VolumeRecord;
use crate::sealed::SlotState;

/// Compares a superblock with the record.
pub(super) fn check_header_rollback(
    header: &HeaderContents,
    ancestry: &Ancestry,
    record: Option<&VolumeRecord>,
) -> Result<(), Rollback> {
    let Some(record) = record else {
        return Ok(());
    };
    let incarnation = header.incarnation();
    if record.pending_incarnation == Some(incarnation) {
        return Ok(());
    }
    if incarnation != record.incarnation {
        let followed = ancestry.follows_newest(&record.key_sets);
        let handover = ancestry.handover_of(record.incarnation);
        return match handover.filter(|_| followed) {
            None => Err(Rollback::OtherIncarnation {
                found: incarnation,
                known: record.incarnation,
                last: LastKnown::of(record),
            }),
            Some(carried_on) if carried_on < record.sequence => Err(Rollback::RenewedFromOlder {
                carried_on,
                known: record.sequence,
                last: LastKnown::of(record),
            }),
            Some(_) => Ok(()),
        };
    }
    if !ancestry.follows_newest(&record.key_sets) {
        return Err(Rollback::OtherKeySet {
            last: LastKnown::of(record),
        });
    }
    if header.header_sequence() < record.header_sequence {
        return Err(Rollback::OlderHeader {
            found: header.header_sequence(),
            known: record.header_sequence,
            last: LastKnown::of(record),
        });
    }
    Ok(())
}

/// Compares the slots of page 0 of `meta` with the record of this incarnation.
pub(super) fn check_metadata_rollback(
    slots: &[SlotState; 2],
    record: Option<&VolumeRecord>,
) -> Result<(), Rollback> {
    let Some(record) = record.filter(|record| record.sequence.0 > 0) else {
        return Ok(());
    };
    let newest = usize::from(slots[1].sequence > slots[0].sequence);
    let sequence = slots[newest].sequence;
    if sequence < record.sequence {
        return Err(Rollback::OlderMetadata {
            found: sequence,
            known: record.sequence,
            last: LastKnown::of(record),
        });
    }
    if sequence > record.sequence {
        return Ok(());
    }
    // The number of a commit determines its slot.
    if slots[newest].outer_tag != record.page0_tags[newest] {
        return Err(Rollback::OtherMetadata {
            sequence,
            last: LastKnown::of(record),
        });
    }
    if record.clean && slots.map(|slot| slot.outer_tag) != record.page0_tags {
        tracing::error!("the older slot of page 0 of meta was changed after a clean unmount");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IncarnationId, Sequence};

    fn slot(sequence: u64, tag: u8) -> SlotState {
        SlotState {
            authentic: sequence > 0,
            sequence: Sequence(sequence),
            outer_tag: [tag; 16],
        }
    }

    fn record(sequence: u64, tags: [u8; 2], clean: bool) -> VolumeRecord {
        VolumeRecord {
            sequence: Sequence(sequence),
            page0_tags: tags.map(|tag| [tag; 16]),
            header_sequence: 1,
            clean,
            ..VolumeRecord::new(IncarnationId([1; 16]))
        }
    }

    #[test]
    fn older_and_other_metadata_are_refused_newer_are_not() {
        let known = record(8, [8, 7], false);
        let judge = |slots| check_metadata_rollback(&slots, Some(&known));
        assert_eq!(judge([slot(8, 8), slot(7, 7)]), Ok(()));
        // The other slot was being written when the power went.
        assert_eq!(judge([slot(8, 8), slot(0, 0)]), Ok(()));
        assert_eq!(judge([slot(8, 8), slot(9, 9)]), Ok(()));
        assert_eq!(judge([slot(10, 3), slot(9, 9)]), Ok(()));
        assert_eq!(
            judge([slot(0, 0), slot(7, 7)]),
            Err(Rollback::OlderMetadata {
                found: Sequence(7),
                known: Sequence(8),
                last: LastKnown::default(),
            })
        );
        assert_eq!(
            judge([slot(8, 5), slot(7, 7)]),
            Err(Rollback::OtherMetadata {
                sequence: Sequence(8),
                last: LastKnown::default(),
            })
        );
        assert_eq!(
            check_metadata_rollback(&[slot(1, 1), slot(0, 0)], None),
            Ok(())
        );
    }

    #[test]
    fn a_cleanly_unmounted_volume_may_lose_the_older_slot() {
        let known = record(8, [8, 7], true);
        let judge = |slots| check_metadata_rollback(&slots, Some(&known));
        assert_eq!(judge([slot(8, 8), slot(7, 7)]), Ok(()));
        assert_eq!(judge([slot(8, 8), slot(0, 0)]), Ok(()));
        assert_eq!(judge([slot(8, 8), slot(7, 1)]), Ok(()));
        assert_eq!(judge([slot(8, 8), slot(9, 9)]), Ok(()));
        assert!(judge([slot(6, 6), slot(7, 7)]).is_err());
    }

    #[test]
    fn a_refusal_says_when_and_where_the_newer_state_was() {
        let known = VolumeRecord {
            written: Some(1_764_000_000),
            directory: Some(crate::keys::RememberedDirectory {
                path: "/srv/volume".into(),
                inode: 1,
                filesystem: None,
                inside: None,
            }),
            ..record(8, [8, 7], false)
        };
        let older = check_metadata_rollback(&[slot(3, 3), slot(2, 2)], Some(&known)).unwrap_err();
        let said = older.to_string();
        assert!(
            said.contains("commit 3") && said.contains("commit 8"),
            "{said}"
        );
        assert!(
            said.contains("(last written 2025-11-24T16:00:00Z in /srv/volume)"),
            "{said}"
        );
    }
}
