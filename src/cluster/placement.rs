//! From an entity's key to its owner: a hash gives the key's partition, a rendezvous hash the partition's owner.
//!
//! Pure, and the same on every node and in every version of the program: a change here is a change of the protocol, and two
//! versions that disagree would send each other's commands back and forth.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::wire::Name;
use crate::persistence::EntityKey;

pub const PARTITIONS: usize = 256;

/// One of `PARTITIONS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u8);

impl Partition {
    pub fn all() -> impl Iterator<Item = Partition> {
        (0..=u8::MAX).map(Partition)
    }

    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

pub fn partition(key: &EntityKey) -> Partition {
    let [.., lowest] = xxh3_64(key.as_str().as_bytes()).to_be_bytes();
    Partition(lowest)
}

/// The owner of each partition among some members. The order in which the members are named makes no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    names: Vec<Name>,
    /// An index into `names` for each partition; meaningless when there are none.
    owner: [u16; PARTITIONS],
}

impl Owners {
    pub fn among(members: impl IntoIterator<Item = Name>) -> Self {
        let mut names: Vec<Name> = members.into_iter().collect();
        names.sort();
        names.dedup();
        names.truncate(usize::from(u16::MAX));
        let mut owner = [0; PARTITIONS];
        for partition in Partition::all() {
            // Equal weights are as good as impossible, and then the later name wins everywhere.
            let heaviest = (0u16..).zip(&names).max_by_key(|(_, name)| weight(name, partition));
            owner[partition.index()] = heaviest.map_or(0, |(index, _)| index);
        }
        Owners { names, owner }
    }

    /// `None` when there are no members.
    pub fn of(&self, partition: Partition) -> Option<&Name> {
        self.names.get(usize::from(self.owner[partition.index()]))
    }

    pub fn names(&self) -> &[Name] {
        &self.names
    }

    pub fn owned_by(&self, name: &Name) -> Partitions {
        Partition::all().filter(|partition| self.of(*partition) == Some(name)).collect()
    }
}

fn weight(name: &Name, partition: Partition) -> u64 {
    xxh3_64_with_seed(name.as_str().as_bytes(), u64::from(partition.0))
}

/// Some of the partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Partitions([u64; PARTITIONS / u64::BITS as usize]);

impl Partitions {
    pub const NONE: Partitions = Partitions([0; PARTITIONS / u64::BITS as usize]);

    fn place(partition: Partition) -> (usize, u64) {
        let bits = u64::BITS as usize;
        (partition.index() / bits, 1 << (partition.index() % bits))
    }

    pub fn contains(&self, partition: Partition) -> bool {
        let (word, bit) = Self::place(partition);
        self.0[word] & bit != 0
    }

    pub fn insert(&mut self, partition: Partition) {
        let (word, bit) = Self::place(partition);
        self.0[word] |= bit;
    }

    pub fn remove(&mut self, partition: Partition) {
        let (word, bit) = Self::place(partition);
        self.0[word] &= !bit;
    }

    pub fn union(&self, other: &Self) -> Self {
        Partitions(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    pub fn intersection(&self, other: &Self) -> Self {
        Partitions(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    pub fn without(&self, other: &Self) -> Self {
        Partitions(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    pub fn iter(&self) -> impl Iterator<Item = Partition> + '_ {
        Partition::all().filter(|partition| self.contains(*partition)).take(self.len())
    }
}

impl FromIterator<Partition> for Partitions {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut all = Partitions::NONE;
        partitions.into_iter().for_each(|partition| all.insert(partition));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<Name> {
        (1..=count).map(|number| Name::parse(&format!("node-{number}")).unwrap()).collect()
    }

    #[test]
    fn the_hashes_are_those_of_every_version() {
        let of = |key: &str| partition(&EntityKey::parse(key).unwrap()).0;
        let fixed = [of("cart/cart_01"), of("inventory/MUG-BLUE"), of("order/ord_01"), of("product/é")];
        assert_eq!(fixed, [51, 109, 104, 56]);
        let owners = Owners::among(names(5));
        let all: String = Partition::all().map(|partition| owners.of(partition).unwrap().as_str()).collect();
        assert_eq!(xxh3_64(all.as_bytes()), 12_726_243_945_778_776_304);
    }

    #[test]
    fn each_of_several_members_gets_a_fair_share() {
        // A share is as a throw of 256 dice: with n members its mean is 256/n, its variance 256(n-1)/n². Five deviations are
        // far more than the luckiest and the unluckiest of these few names should get.
        for count in 1..=16_usize {
            let owners = Owners::among(names(count));
            let (mean, members) = (PARTITIONS as f64 / count as f64, count as f64);
            let deviation = (PARTITIONS as f64 * (members - 1.0)).sqrt() / members;
            for name in names(count) {
                let share = owners.owned_by(&name).len() as f64;
                assert!((share - mean).abs() <= 5.0 * deviation, "{name} of {count} has {share}, not about {mean}");
            }
        }
    }

    #[test]
    fn without_members_nobody_owns_anything() {
        assert!(Partition::all().all(|partition| Owners::among([]).of(partition).is_none()));
    }

    proptest! {
        #[test]
        fn a_member_that_leaves_moves_its_own_partitions_only(
            members in prop::collection::btree_set("[a-zA-Z0-9_-]{1,12}", 2..12),
            who in any::<prop::sample::Index>(),
        ) {
            let members: Vec<Name> = members.iter().map(|name| Name::parse(name).unwrap()).collect();
            let leaves = who.get(&members).clone();
            let before = Owners::among(members.clone());
            let after = Owners::among(members.into_iter().filter(|name| *name != leaves));
            for partition in Partition::all() {
                prop_assert!(before.of(partition) == Some(&leaves) || before.of(partition) == after.of(partition));
                prop_assert!(after.of(partition) != Some(&leaves));
            }
        }

        #[test]
        fn the_order_of_members_makes_no_difference(
            members in prop::collection::vec("[a-zA-Z0-9_-]{1,12}", 1..12).prop_shuffle(),
        ) {
            let members: Vec<Name> = members.iter().map(|name| Name::parse(name).unwrap()).collect();
            let turned: Vec<Name> = members.iter().rev().cloned().collect();
            prop_assert_eq!(Owners::among(members), Owners::among(turned));
        }

        #[test]
        fn sets_of_partitions_are_sets(left: Vec<u8>, right: Vec<u8>) {
            let set = |of: &[u8]| of.iter().copied().map(Partition).collect::<Partitions>();
            let (a, b) = (set(&left), set(&right));
            for partition in Partition::all() {
                let (in_a, in_b) = (left.contains(&partition.0), right.contains(&partition.0));
                prop_assert_eq!(a.contains(partition), in_a);
                prop_assert_eq!(a.union(&b).contains(partition), in_a || in_b);
                prop_assert_eq!(a.intersection(&b).contains(partition), in_a && in_b);
                prop_assert_eq!(a.without(&b).contains(partition), in_a && !in_b);
            }
            prop_assert_eq!(a.iter().collect::<Partitions>(), a);
            prop_assert_eq!(a.iter().count(), a.len());
        }
    }
}
