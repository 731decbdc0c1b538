//! Ids under random creates, removals, crashes and restarts of several processes, whose single
//! steps come in any order.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const RANGE: Range<u32> = 100..108;

/// A directory: which project it belongs to and how much is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dir {
    id: u32,
    children: u64,
    /// Whether its maker believes to own the id.
    owner: bool,
}

/// A process beside the one that is tested: it follows the same rules, one kernel call at a time.
#[derive(Debug, Clone, Copy)]
enum Other {
    Idle,
    /// Has seen that nobody has the id.
    Seen(u32),
    /// Its tree, which it has not looked at again yet.
    Carries(usize),
    /// Its tree.
    Owns(usize),
    /// Removes its tree.
    Empties(usize),
}

#[derive(Default)]
struct World {
    dirs: BTreeMap<usize, Dir>,
    limits: BTreeMap<u32, usize>,
    next: usize,
    others: Vec<Other>,
    script: Vec<u8>,
}

impl World {
    fn count(&self, id: u32) -> u64 {
        let of_it = self.dirs.values().filter(|dir| dir.id == id);
        of_it.map(|dir| 1 + dir.children).sum()
    }

    fn make(&mut self) -> usize {
        self.next += 1;
        let dir = Dir {
            id: 0,
            children: 0,
            owner: false,
        };
        self.dirs.insert(self.next, dir);
        self.next
    }

    fn own(&mut self, tree: usize) {
        let dir = self.dirs.get_mut(&tree).unwrap();
        (dir.owner, dir.children) = (true, 3);
        self.limits.insert(dir.id, tree);
    }

    /// The other processes take some steps.
    fn turn(&mut self) {
        let steps = self.script.pop().unwrap_or(0) % 8;
        for _ in 0..steps {
            let byte = self.script.pop().unwrap_or(0);
            if self.others.is_empty() {
                return;
            }
            let which = usize::from(byte) % self.others.len();
            self.others[which] = self.step(self.others[which], byte);
            self.check();
        }
    }

    fn step(&mut self, other: Other, byte: u8) -> Other {
        // Killed, with everything left as it is.
        if byte > 210 {
            return Other::Idle;
        }
        match other {
            Other::Idle => {
                let id = RANGE.start + u32::from(byte) % (RANGE.end - RANGE.start);
                if self.count(id) == 0 {
                    Other::Seen(id)
                } else {
                    Other::Idle
                }
            }
            Other::Seen(id) => {
                let tree = self.make();
                self.dirs.get_mut(&tree).unwrap().id = id;
                Other::Carries(tree)
            }
            Other::Carries(tree) => {
                if self.count(self.dirs[&tree].id) == 1 {
                    self.own(tree);
                    Other::Owns(tree)
                } else {
                    Other::Empties(tree)
                }
            }
            Other::Owns(tree) => Other::Empties(tree),
            Other::Empties(tree) => {
                self.remove(tree);
                Other::Idle
            }
        }
    }

    /// What the trash does with a tree, in one go.
    fn remove(&mut self, tree: usize) {
        let Some(dir) = self.dirs.get(&tree).copied() else {
            return;
        };
        self.dirs.get_mut(&tree).unwrap().children = 0;
        if dir.children > 0 || self.count(dir.id) == 1 {
            self.limits.remove(&dir.id);
        }
        self.dirs.remove(&tree);
    }

    /// No two owners of one id, and every owner's limit is its own.
    fn check(&self) {
        let mut owners = BTreeMap::new();
        for (tree, dir) in self.dirs.iter().filter(|(_, dir)| dir.owner) {
            assert_eq!(owners.insert(dir.id, *tree), None, "shared: {dir:?}");
            if dir.children > 0 {
                assert_eq!(self.limits.get(&dir.id), Some(tree), "limit lost: {dir:?}");
            }
        }
    }
}

impl Ledger for RefCell<World> {
    type Tree = usize;

    fn inodes(&self, id: u32) -> io::Result<u64> {
        let mut world = self.borrow_mut();
        world.turn();
        let count = world.count(id);
        world.turn();
        Ok(count)
    }

    fn carry(&self, tree: &usize, id: u32) -> io::Result<()> {
        let mut world = self.borrow_mut();
        world.turn();
        world.dirs.get_mut(tree).unwrap().id = id;
        Ok(())
    }

    fn lift(&self, id: u32) -> io::Result<()> {
        let mut world = self.borrow_mut();
        world.turn();
        world.limits.remove(&id);
        Ok(())
    }
}

/// Removes a tree as the trash does, step by step.
fn remove(world: &RefCell<World>, tree: usize) {
    let dir = world.borrow().dirs[&tree];
    world.borrow_mut().dirs.get_mut(&tree).unwrap().children = 0;
    if RANGE.contains(&dir.id) {
        release(world, dir.id, dir.children > 0).unwrap();
    }
    world.borrow_mut().dirs.remove(&tree);
}

proptest! {
    #[test]
    fn no_two_trees_have_one_id(
        script in prop::collection::vec(any::<u8>(), 0..400),
        seeds in prop::collection::vec(any::<u32>(), 1..200),
        actions in prop::collection::vec(0..6_u8, 1..40),
        others in 0..4_usize,
    ) {
        let world = RefCell::new(World {
            others: vec![Other::Idle; others],
            script,
            ..World::default()
        });
        let mut seeds = seeds.into_iter().cycle();
        let mut mine = Vec::new();
        for action in actions {
            match action {
                // Create; a create that is killed half-way leaves its tree to the restart.
                0..=2 => {
                    let tree = world.borrow_mut().make();
                    let claimed = claim(&world, &RANGE, &tree, || seeds.next().unwrap());
                    let killed = action == 2;
                    let mut world = world.borrow_mut();
                    if let (Some(id), false) = (claimed.unwrap(), killed) {
                        prop_assert_eq!(world.count(id), 1 + world.dirs.iter().filter(
                            |(other, dir)| **other != tree && dir.id == id).count() as u64);
                        world.own(tree);
                        world.check();
                        mine.push(tree);
                    }
                }
                3 if !mine.is_empty() => remove(&world, mine.remove(0)),
                // Restart: everything without an owner who lives goes, the rest is found again.
                4 => {
                    let left: Vec<_> = {
                        let world = world.borrow();
                        let held = |tree: &usize| mine.contains(tree)
                            || world.others.iter().any(|other| matches!(other,
                                Other::Carries(t) | Other::Owns(t) | Other::Empties(t) if t == tree));
                        world.dirs.keys().copied().filter(|tree| !held(tree)).collect()
                    };
                    for tree in left {
                        if world.borrow().dirs.contains_key(&tree) {
                            remove(&world, tree);
                        }
                    }
                }
                _ => world.borrow_mut().turn(),
            }
            world.borrow().check();
        }
        // In the end everything is removed, and nothing is left.
        world.borrow_mut().script.clear();
        let all: Vec<_> = world.borrow().dirs.keys().copied().collect();
        for tree in all {
            remove(&world, tree);
        }
        prop_assert!(world.borrow().limits.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn ids_stay_close_together(live in 0..200_usize, seed in any::<u64>()) {
        let world = RefCell::new(World::default());
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        let range = 1 << 30..1 << 31;
        let mut highest = range.start;
        for _ in 0..live {
            let tree = world.borrow_mut().make();
            let id = claim(&world, &range, &tree, &mut random).unwrap().unwrap();
            highest = highest.max(id);
        }
        let bound = 64 * live.max(1) as u32 + 1024;
        prop_assert!(highest - range.start <= bound, "{} for {live}", highest - range.start);
    }
}

#[test]
fn a_full_range_is_an_answer() {
    let world = RefCell::new(World::default());
    let mut seed = 0;
    for expected in [true; 4].into_iter().chain([false; 2]) {
        let tree = world.borrow_mut().make();
        let mut random = || {
            seed += 1;
            seed
        };
        let id = claim(&world, &(7..11), &tree, &mut random).unwrap();
        assert_eq!(id.is_some(), expected);
        if id.is_none() {
            world.borrow_mut().dirs.remove(&tree);
        }
    }
}

#[test]
fn an_unlucky_try_does_not_lift_the_limits_of_the_owner() {
    let world = RefCell::new(World::default());
    let owner = world.borrow_mut().make();
    let unlucky = world.borrow_mut().make();
    assert!(claim_one(&world, &owner, 100).unwrap());
    world.borrow_mut().own(owner);
    // Killed before it looked again.
    world.carry(&unlucky, 100).unwrap();
    remove(&world, unlucky);
    assert_eq!(world.borrow().limits.get(&100), Some(&owner));
    remove(&world, owner);
    assert!(world.borrow().limits.is_empty());
}
