//! A persistent ordered tree that is small: a clone shares everything, a change copies the path to it, and nodes have
//! hardly more room than items.
//!
//! Items order themselves; the caller says how an item compares with what is sought, so that keys need not be stored
//! beside what they can be read from.

use std::cmp::Ordering;
use std::sync::Arc;

/// Most items of a leaf, and children of a branch.
const MAX: usize = 32;
/// Fewer than this, and a node is joined with its neighbour if both fit.
const MIN: usize = 8;
/// Room that a node grows by.
const SLACK: usize = 8;

/// An ordered collection without duplicates.
#[derive(Debug)]
pub struct Tree<T> {
    root: Arc<Node<T>>,
    len: usize,
}

#[derive(Debug)]
enum Node<T> {
    Leaf(Vec<T>),
    /// Children, each with a copy of an item that is not above its first and above everything before it.
    Branch(Vec<(T, Arc<Self>)>),
}

impl<T> Clone for Tree<T> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

/// A copy is made to be changed: one more fits.
fn copied<T: Clone>(items: &[T]) -> Vec<T> {
    let mut copy = Vec::with_capacity(items.len() + 1);
    copy.extend_from_slice(items);
    copy
}

impl<T: Clone> Clone for Node<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Leaf(items) => Self::Leaf(copied(items)),
            Self::Branch(children) => Self::Branch(copied(children)),
        }
    }
}

/// Puts an item into a node's vector; gives what does not fit any more, to become the next node.
fn put<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    if items.len() < MAX {
        if items.len() == items.capacity() {
            items.reserve_exact(SLACK);
        }
        items.insert(at, item);
        return None;
    }
    // Runs of ascending keys fill nodes; what comes in no order halves them.
    let ascends = at * 4 >= MAX * 3;
    let mut rest = items.split_off(if ascends { at } else { MAX / 2 });
    if at == MAX {
        rest = vec![item];
    } else if ascends {
        items.push(item);
    } else if at <= MAX / 2 {
        items.insert(at, item);
    } else {
        rest.insert(at - MAX / 2, item);
    }
    if !ascends {
        items.shrink_to(items.len() + SLACK);
    }
    Some(rest)
}

impl<T: Clone> Node<T> {
    fn first(&self) -> Option<&T> {
        match self {
            Self::Leaf(items) => items.first(),
            Self::Branch(children) => children.first().map(|(first, _)| first),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(items) => items.len(),
            Self::Branch(children) => children.len(),
        }
    }

    /// The item before, and the node after this one if it was split.
    fn insert(&mut self, item: T, order: &impl Fn(&T) -> Ordering) -> (Option<T>, Option<Self>) {
        match self {
            Self::Leaf(items) => match items.binary_search_by(order) {
                Ok(at) => (items.get_mut(at).map(|old| std::mem::replace(old, item)), None),
                Err(at) => (None, put(items, at, item).map(Self::Leaf)),
            },
            Self::Branch(children) => {
                let at = child(children, order);
                let Some((first, node)) = children.get_mut(at) else { return (None, None) };
                if order(first) == Ordering::Greater {
                    first.clone_from(&item);
                }
                let (old, split) = Arc::make_mut(node).insert(item, order);
                let new = split.and_then(|node| Some((node.first()?.clone(), Arc::new(node))));
                (old, new.and_then(|new| put(children, at + 1, new)).map(Self::Branch))
            }
        }
    }

    fn remove(&mut self, order: &impl Fn(&T) -> Ordering) -> Option<T> {
        match self {
            Self::Leaf(items) => items.binary_search_by(order).ok().map(|at| items.remove(at)),
            Self::Branch(children) => {
                let at = child(children, order);
                let (_, node) = children.get_mut(at)?;
                let gone = Arc::make_mut(node).remove(order)?;
                if node.len() < MIN {
                    join(children, at);
                }
                Some(gone)
            }
        }
    }

    /// Takes the content of the next node.
    fn append(&mut self, next: Self) {
        match (self, next) {
            (Self::Leaf(items), Self::Leaf(more)) => items.extend(more),
            (Self::Branch(children), Self::Branch(more)) => children.extend(more),
            // All children of a branch are of one kind.
            (Self::Leaf(_), Self::Branch(_)) | (Self::Branch(_), Self::Leaf(_)) => {}
        }
    }
}

/// The child that holds what is sought.
fn child<T>(children: &[(T, Arc<Node<T>>)], order: &impl Fn(&T) -> Ordering) -> usize {
    children.partition_point(|(first, _)| order(first) != Ordering::Greater).saturating_sub(1)
}

/// Joins a child that has become small with a neighbour, or drops it if it is empty.
fn join<T: Clone>(children: &mut Vec<(T, Arc<Node<T>>)>, at: usize) {
    let size = |at: usize| children.get(at).map(|(_, node)| node.len());
    if size(at) == Some(0) {
        children.remove(at);
        return;
    }
    let fits = |left: usize| size(left).zip(size(left + 1)).is_some_and(|(a, b)| a + b <= MAX * 3 / 4);
    let left = if fits(at) {
        at
    } else if at > 0 && fits(at - 1) {
        at - 1
    } else {
        return;
    };
    let (_, next) = children.remove(left + 1);
    if let Some((_, node)) = children.get_mut(left) {
        Arc::make_mut(node).append(Arc::unwrap_or_clone(next));
    }
}

impl<T> Tree<T> {
    /// Number of items.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no item.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item that compares as equal.
    pub fn get(&self, order: impl Fn(&T) -> Ordering) -> Option<&T> {
        let mut node = &self.root;
        loop {
            match node.as_ref() {
                Node::Leaf(items) => return items.get(items.binary_search_by(order).ok()?),
                Node::Branch(children) => node = &children.get(child(children, &order))?.1,
            }
        }
    }

    /// All items from the first that does not compare as less.
    pub fn iter_from(&self, order: impl Fn(&T) -> Ordering) -> Iter<'_, T> {
        let mut above = Vec::new();
        let mut node = &self.root;
        loop {
            match node.as_ref() {
                Node::Leaf(items) => {
                    let from = items.partition_point(|item| order(item) == Ordering::Less);
                    return Iter { above, leaf: items.get(from..).unwrap_or_default().iter() };
                }
                Node::Branch(children) => {
                    let at = child(children, &order);
                    let Some((_, next)) = children.get(at) else {
                        return Iter { above, leaf: [].iter() };
                    };
                    above.push(children.get(at + 1..).unwrap_or_default().iter());
                    node = next;
                }
            }
        }
    }

    /// All items.
    #[must_use]
    pub fn iter(&self) -> Iter<'_, T> {
        self.iter_from(|_| Ordering::Greater)
    }
}

impl<T: Clone> Tree<T> {
    /// The item that compares as equal, to be changed; it must go on comparing like that.
    pub fn get_mut(&mut self, order: impl Fn(&T) -> Ordering) -> Option<&mut T> {
        // What is not there must not cost a copy.
        self.get(&order)?;
        let mut node = &mut self.root;
        loop {
            match Arc::make_mut(node) {
                Node::Leaf(items) => {
                    return items.binary_search_by(order).ok().and_then(|at| items.get_mut(at));
                }
                Node::Branch(children) => {
                    let at = child(children, &order);
                    node = &mut children.get_mut(at)?.1;
                }
            }
        }
    }

    /// Puts an item in, at the place of one that compares as equal, which is given back.
    pub fn insert(&mut self, item: T, order: impl Fn(&T) -> Ordering) -> Option<T> {
        let (old, split) = Arc::make_mut(&mut self.root).insert(item, &order);
        if let Some(node) = split {
            let left = std::mem::replace(&mut self.root, Arc::new(Node::Leaf(Vec::new())));
            let halves = [left, Arc::new(node)];
            let children = halves.into_iter().filter_map(|node| Some((node.first()?.clone(), node)));
            self.root = Arc::new(Node::Branch(children.collect()));
        }
        self.len += usize::from(old.is_none());
        old
    }

    /// Moves the items into as few nodes as can be: what came in no order leaves them two thirds full.
    pub fn pack(&mut self) {
        let items: Vec<T> = self.iter().cloned().collect();
        let mut nodes: Vec<Node<T>> = items.chunks(MAX).map(|chunk| Node::Leaf(chunk.to_vec())).collect();
        drop(items);
        while nodes.len() > 1 {
            let mut children =
                nodes.into_iter().filter_map(|node| Some((node.first()?.clone(), Arc::new(node))));
            nodes = std::iter::from_fn(|| {
                let some: Vec<_> = children.by_ref().take(MAX).collect();
                (!some.is_empty()).then_some(Node::Branch(some))
            })
            .collect();
        }
        self.root = Arc::new(nodes.pop().unwrap_or_else(|| Node::Leaf(Vec::new())));
    }

    /// Takes the item out that compares as equal.
    pub fn remove(&mut self, order: impl Fn(&T) -> Ordering) -> Option<T> {
        // What is not there must not cost a copy.
        self.get(&order)?;
        let gone = Arc::make_mut(&mut self.root).remove(&order)?;
        self.len -= 1;
        while let Node::Branch(children) = self.root.as_ref() {
            match children.as_slice() {
                [] => self.root = Arc::new(Node::Leaf(Vec::new())),
                [(_, only)] => self.root = only.clone(),
                _ => break,
            }
        }
        Some(gone)
    }
}

/// Items in order.
#[derive(Debug)]
pub struct Iter<'a, T> {
    above: Vec<std::slice::Iter<'a, (T, Arc<Node<T>>)>>,
    leaf: std::slice::Iter<'a, T>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(item) = self.leaf.next() {
                return Some(item);
            }
            let (_, next) = loop {
                match self.above.last_mut()?.next() {
                    Some(next) => break next,
                    None => drop(self.above.pop()),
                }
            };
            let mut node = next;
            loop {
                match node.as_ref() {
                    Node::Leaf(items) => {
                        self.leaf = items.iter();
                        break;
                    }
                    Node::Branch(children) => {
                        let mut children = children.iter();
                        let Some((_, first)) = children.next() else { break };
                        self.above.push(children);
                        node = first;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn insert(tree: &mut Tree<(u16, u8)>, key: u16, value: u8) -> Option<(u16, u8)> {
        tree.insert((key, value), |item| item.0.cmp(&key))
    }

    fn leaves(tree: &Tree<(u16, u8)>) -> usize {
        let mut nodes = vec![tree.root.clone()];
        let mut leaves = 0;
        while let Some(node) = nodes.pop() {
            match node.as_ref() {
                Node::Leaf(_) => leaves += 1,
                Node::Branch(children) => nodes.extend(children.iter().map(|(_, child)| child.clone())),
            }
        }
        leaves
    }

    #[test]
    fn ascending_runs_fill_the_leaves() {
        let mut tree = Tree::default();
        for key in 0..20_000u16 {
            insert(&mut tree, key, 0);
        }
        assert_eq!(leaves(&tree), 20_000 / MAX);
    }

    #[test]
    fn packing_fills_the_leaves() {
        let mut tree = Tree::default();
        for key in 0..20_000u16 {
            insert(&mut tree, key.wrapping_mul(40_503), 0);
        }
        assert!(leaves(&tree) > 20_000 / MAX * 5 / 4, "{}", leaves(&tree));
        tree.pack();
        assert_eq!(leaves(&tree), 20_000 / MAX);
    }

    proptest! {
        /// It is what a `BTreeMap` would be, and clones do not change.
        #[test]
        fn like_a_map(ops in prop::collection::vec((0u16..600, any::<u8>(), 0u8..10), 0..3000), sorted in any::<bool>()) {
            let mut ops = ops;
            if sorted {
                ops.sort_unstable();
            }
            let (mut tree, mut model) = (Tree::default(), BTreeMap::new());
            let mut kept = None;
            for (key, value, op) in ops {
                match op {
                    0..=4 => prop_assert_eq!(insert(&mut tree, key, value).map(|old| old.1), model.insert(key, value)),
                    5..=7 => prop_assert_eq!(tree.remove(|item| item.0.cmp(&key)).map(|old| old.1), model.remove(&key)),
                    8 => kept = Some((tree.clone(), model.clone())),
                    _ => tree.pack(),
                }
                prop_assert_eq!(tree.len(), model.len());
                prop_assert_eq!(tree.get(|item| item.0.cmp(&key)).map(|item| item.1), model.get(&key).copied());
            }
            for (tree, model) in kept.into_iter().chain([(tree, model)]) {
                prop_assert!(tree.iter().copied().eq(model.iter().map(|(key, value)| (*key, *value))));
                for from in (0..600).step_by(37) {
                    let here = tree.iter_from(|item| item.0.cmp(&from)).map(|item| item.0);
                    prop_assert!(here.eq(model.range(from..).map(|(key, _)| *key)));
                }
            }
        }

        /// What is emptied again has no leftovers.
        #[test]
        fn emptied(keys in prop::collection::btree_set(0u16..2000, 0..500)) {
            let mut tree = Tree::default();
            for key in &keys {
                insert(&mut tree, *key, 1);
            }
            for key in keys.iter().rev() {
                tree.remove(|item| item.0.cmp(key));
            }
            prop_assert_eq!((tree.len(), tree.iter().count(), tree.root.len()), (0, 0, 0));
        }
    }
}
