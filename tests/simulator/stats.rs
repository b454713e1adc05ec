//! Counts of everything that was done and compared.

use std::fmt;

macro_rules! counts {
    ($($name:ident: $what:literal,)*) => {
        /// Counts of one scenario, or of many.
        #[derive(Clone, Copy, Default, Debug)]
        pub struct Stats {
            $(pub $name: u64,)*
        }

        impl std::ops::AddAssign for Stats {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl fmt::Display for Stats {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let counts = [$((self.$name, $what),)*];
                let some = counts.iter().filter(|(count, _)| *count > 0);
                let texts: Vec<String> =
                    some.map(|(count, what)| format!("{count} {what}")).collect();
                f.write_str(&texts.join(", "))
            }
        }
    };
}

counts! {
    seeds: "seeds",
    operations: "operations",
    cuts: "power cuts",
    torn_devices: "of them on devices that tear pages",
    kills: "kills",
    cuts_in_recovery: "cuts while opening",
    cuts_after_unmount: "cuts while unmounting or after it",
    older_records: "times with an older keystore record",
    files: "files checked",
    torn_pages: "pages torn and reported",
    views: "views checked",
    deployed: "deployed volumes checked",
    syncs: "fsyncs relied on",
}
