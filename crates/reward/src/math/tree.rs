//! The tree of a parsed answer.

use num_rational::BigRational;

/// An answer or a part of one. Depth and size are bounded by the parser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A literal; `decimals` is the number of digits after the point where one was written.
    Number {
        value: BigRational,
        decimals: Option<usize>,
    },
    /// Digits in a stated base, which are not evaluated: `101_2` and `5` are different answers.
    Based {
        digits: String,
        base: String,
    },
    Name(String),
    Pi,
    E,
    I,
    Infinity,
    /// A word, a phrase or a unit, lower case.
    Text(String),
    Negative(Box<Node>),
    Sum(Vec<Node>),
    Product(Vec<Node>),
    Inverse(Box<Node>),
    Power(Box<Node>, Box<Node>),
    Root {
        degree: u32,
        radicand: Box<Node>,
    },
    Call(&'static str, Vec<Node>),
    /// A value with its unit; `%`, `°` and `$` are units too.
    Unit(Box<Node>, String),
    /// An enumeration without brackets; the order does not count.
    List(Vec<Node>),
    Set(Vec<Node>),
    /// A tuple, point or interval, with the brackets as written.
    Tuple {
        open: char,
        close: char,
        items: Vec<Node>,
    },
    Union(Vec<Node>),
    Intersection(Vec<Node>),
    /// What the first set has and the second has not.
    Without(Box<Node>, Box<Node>),
    /// `a : b : c`; a `clock` time such as `3:05` is no quotient.
    Ratio {
        parts: Vec<Node>,
        clock: bool,
    },
    /// A chain `a = b < c`.
    Relation(Box<Node>, Vec<(Relation, Node)>),
    Matrix(Vec<Vec<Node>>),
}

/// What stands between two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    Approximately,
    Congruent,
    /// The arrow of a limit.
    To,
}

impl Relation {
    /// The relation read from right to left.
    pub(super) fn reversed(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessEqual => Self::GreaterEqual,
            Self::Greater => Self::Less,
            Self::GreaterEqual => Self::LessEqual,
            same => same,
        }
    }
}

impl Node {
    /// A whole number.
    pub(super) fn integer(value: i64) -> Self {
        Self::Number { value: BigRational::from_integer(value.into()), decimals: None }
    }

    /// The parts of a node, each once.
    pub(super) fn children(&self) -> Vec<&Self> {
        match self {
            Self::Negative(inner) | Self::Inverse(inner) | Self::Unit(inner, _) => vec![inner],
            Self::Root { radicand, .. } => vec![radicand],
            Self::Power(a, b) | Self::Without(a, b) => vec![a, b],
            Self::Sum(parts)
            | Self::Product(parts)
            | Self::Call(_, parts)
            | Self::List(parts)
            | Self::Set(parts)
            | Self::Union(parts)
            | Self::Intersection(parts)
            | Self::Ratio { parts, .. }
            | Self::Tuple { items: parts, .. } => parts.iter().collect(),
            Self::Matrix(rows) => rows.iter().flatten().collect(),
            Self::Relation(first, rest) => std::iter::once(&**first).chain(rest.iter().map(|(_, side)| side)).collect(),
            Self::Number { .. }
            | Self::Based { .. }
            | Self::Name(_)
            | Self::Pi
            | Self::E
            | Self::I
            | Self::Infinity
            | Self::Text(_) => Vec::new(),
        }
    }

    /// Whether any part satisfies `test`. The parser bounds the depth, and with it the recursion.
    pub(super) fn any(&self, test: &dyn Fn(&Self) -> bool) -> bool {
        test(self) || self.children().into_iter().any(|part| part.any(test))
    }

    /// How many nodes it has.
    pub(super) fn size(&self) -> usize {
        1 + self.children().into_iter().map(Self::size).sum::<usize>()
    }

    /// Whether it holds a variable or a word.
    pub(super) fn has_names(&self) -> bool {
        self.any(&|node| matches!(node, Self::Name(_) | Self::Text(_)))
    }

    /// The value with `with` in the place of the variable `name`.
    pub(super) fn substitute(&self, name: &str, with: &Self) -> Self {
        let swap = |node: &Self| node.substitute(name, with);
        let all = |nodes: &[Self]| nodes.iter().map(swap).collect::<Vec<_>>();
        match self {
            Self::Name(own) if own == name => with.clone(),
            Self::Negative(inner) => Self::Negative(Box::new(swap(inner))),
            Self::Inverse(inner) => Self::Inverse(Box::new(swap(inner))),
            Self::Root { degree, radicand } => Self::Root { degree: *degree, radicand: Box::new(swap(radicand)) },
            Self::Power(a, b) => Self::Power(Box::new(swap(a)), Box::new(swap(b))),
            Self::Sum(parts) => Self::Sum(all(parts)),
            Self::Product(parts) => Self::Product(all(parts)),
            Self::Call(function, parts) => Self::Call(function, all(parts)),
            // What is no value holds no index.
            other => other.clone(),
        }
    }
}
