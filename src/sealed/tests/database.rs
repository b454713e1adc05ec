//! The real database over `meta`, with clean and unclean stops.

use std::sync::Arc;

use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};

use super::*;

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");

/// The file as the database's storage.
#[derive(Debug)]
struct Backend(Arc<MetaFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

fn database(meta: &Arc<MetaFile>) -> Database {
    Database::builder()
        .create_with_backend(Backend(Arc::clone(meta)))
        .expect("opens")
}

fn commit(database: &Database, round: u64) {
    let mut transaction = database.begin_write().expect("begin");
    transaction.set_two_phase_commit(true);
    {
        let mut table = transaction.open_table(TABLE).expect("table");
        for row in 0..200 {
            let value = pattern(300, round * 1000 + row);
            table
                .insert(round * 1000 + row, value.as_slice())
                .expect("insert");
        }
    }
    transaction.commit().expect("commit");
}

/// The number of rounds whose rows are all in the database.
fn rounds(database: &Database) -> u64 {
    let transaction = database.begin_read().expect("begin");
    let table = transaction.open_table(TABLE).expect("table");
    let whole = |round: &u64| {
        (0..200).all(|row| {
            let key = round * 1000 + row;
            let value = table.get(key).expect("get");
            value.is_some_and(|value| value.value() == pattern(300, key))
        })
    };
    (0..).take_while(whole).count() as u64
}

fn open(file: &Arc<DamageableFile>) -> Arc<MetaFile> {
    let file = Arc::clone(file) as Arc<dyn StoreFile>;
    Arc::new(MetaFile::open(file, &keys(), CRYPTO).expect("opens"))
}

fn create(file: &Arc<DamageableFile>) -> Arc<MetaFile> {
    let file = Arc::clone(file) as Arc<dyn StoreFile>;
    Arc::new(MetaFile::create(file, &keys(), CRYPTO).expect("creates"))
}

#[test]
fn commits_survive_clean_stops() {
    let file = DamageableFile::new();
    let meta = create(&file);
    commit(&database(&meta), 0);
    for round in 1..6 {
        let meta = open(&file);
        let mut database = database(&meta);
        assert_eq!(rounds(&database), round);
        commit(&database, round);
        assert!(database.check_integrity().expect("checks"));
    }
    assert!(open(&file).slots().iter().all(|slot| slot.authentic));
}

#[test]
fn commits_survive_power_cuts() {
    let file = DamageableFile::new();
    let meta = create(&file);
    let first = database(&meta);
    commit(&first, 0);
    for round in 1..6 {
        let survivor = DamageableFile::new();
        survivor.change(|bytes| *bytes = file.synced());
        let meta = open(&survivor);
        assert_eq!(rounds(&database(&meta)), round);
        commit(&first, round);
    }
}

#[test]
fn the_database_recovers_from_a_partly_written_commit() {
    for cut_after in 0..12 {
        let file = DamageableFile::new();
        let meta = create(&file);
        let running = database(&meta);
        commit(&running, 0);
        // A part of the pages of the next commit arrives.
        let file_before = file.bytes();
        commit(&running, 1);
        let after = file.bytes();
        let mut torn = file_before;
        torn.resize(after.len(), 0);
        let untouched = torn.clone();
        let changed = (0..after.len() / META_STRIDE_BYTES)
            .map(|stride| stride * META_STRIDE_BYTES..(stride + 1) * META_STRIDE_BYTES)
            .filter(|bytes| untouched[bytes.clone()] != after[bytes.clone()])
            .filter(|bytes| bytes.start >= 2 * META_STRIDE_BYTES);
        for bytes in changed.take(cut_after) {
            // Half a page.
            let half = bytes.start..bytes.start + 2000;
            torn[half.clone()].copy_from_slice(&after[half]);
        }
        let survivor = DamageableFile::new();
        survivor.change(|bytes| *bytes = torn);
        let meta = open(&survivor);
        let recovered = database(&meta);
        assert_eq!(rounds(&recovered), 1, "after {cut_after} pages");
        commit(&recovered, 1);
        assert_eq!(rounds(&recovered), 2);
    }
}
