"""Route: make what was answered anonymously the signed-in user's.

Annotations are evaluated where they stand, because they name dependencies that are arguments of a function.
"""

from http import HTTPStatus
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends

from producers.producer import Producer
from producers.web.documentation import problems
from producers.web.host import Host
from producers.web.identity import Identity
from producers.web.problems import ProblemError
from producers.web.shapes import ClaimAccepted, ClaimRequest


def add_claims(router: APIRouter, host: Host) -> None:
    """Add the route.

    Args:
        router: Where to.
        host: What the host app gives.
    """

    @router.post(
        "/claims",
        status_code=202,
        operation_id="request_claim",
        summary="Claim what was answered anonymously",
        response_description="The claim is stored, and is applied a moment later.",
        responses=problems("unknown_user", "may_not_claim", body=True),
    )
    async def request_claim(
        _given: ClaimRequest,
        caller: Annotated[Identity, Depends(host.identity)],
        token: Annotated[str | UUID | None, Depends(host.may_claim)],
        producer: Annotated[Producer, Depends(host.producer)],
    ) -> ClaimAccepted:
        """Move the answers and drafts of this browser to the user who has just signed in. May be repeated."""
        if caller.user_id is None or token is None:
            raise ProblemError(
                HTTPStatus.FORBIDDEN, "There is nothing that this caller may claim.", kind="may-not-claim"
            )
        claim_id = await producer.claim(anonymous_token=token, user_id=caller.user_id)
        return ClaimAccepted(claim_id=claim_id)
