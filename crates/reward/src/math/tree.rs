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
}
