"""Who asks, and what they may do."""

import secrets
from dataclasses import dataclass, field

from starlette.requests import Request

from .refusals import Refusal, no_repo
from .storage import Repo


@dataclass
class Access:
    """Tokens and the users behind them; `secret` signs the links to the other origin."""

    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)  # token to (user, role)
    secret: str = field(default_factory=lambda: secrets.token_hex(16))

    def token(self, user: str, role: str) -> str:
        for token, owner in self.tokens.items():
            if owner == (user, role):
                return token
        token = "hf_" + secrets.token_hex(17)
        self.tokens[token] = (user, role)
        return token

    def who(self, request: Request) -> tuple[str | None, str]:
        """User (None when nobody is logged in) and role of the token; 401 for a token that does not exist."""
        header = request.headers.get("authorization")
        if header is None:
            return None, "read"
        try:
            return self.tokens[header.removeprefix("Bearer ")]
        except KeyError:
            raise Refusal(401, "Invalid credentials in Authorization header") from None

    def read(self, request: Request, repo: Repo) -> None:
        """A private repo looks missing to everyone but its owner."""
        user, _ = self.who(request)
        if repo.private and user != repo.owner:
            raise no_repo()

    def download(self, request: Request, repo: Repo) -> None:
        """The files of a gated repo are for its owner and for those let through."""
        self.read(request, repo)
        user, _ = self.who(request)
        if repo.gated and user != repo.owner and user not in repo.readers:
            raise Refusal(
                401 if user is None else 403, f"Access to {repo.type} {repo.id} is restricted.", "GatedRepo"
            )

    def write(self, request: Request, repo: Repo) -> str:
        """The user, when it is the owner with a token that may write."""
        self.read(request, repo)
        if self.who(request)[0] is None:
            # Over https the clients turn a 401 on a repo into RepositoryNotFoundError; the code does it over http.
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        return self.write_to(request, repo.owner)

    def write_to(self, request: Request, namespace: str | None) -> str:
        user, role = self.who(request)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if role != "write" or namespace not in (None, user):
            raise Refusal(403, f"You don't have the rights to write under the namespace {namespace or user!r}")
        return user
