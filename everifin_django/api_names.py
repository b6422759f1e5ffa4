"""
How Everifin spells its paths and the names of its fields: one mapping of each, which a site can
correct by EVERIFIN_API_PATHS and EVERIFIN_API_FIELDS.
"""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_API_PATHS: Mapping[str, str] = {
    "accounts": "/v1/bank-accounts",
    "account": "/v1/bank-accounts/{account_id}",
    "transactions": "/v1/bank-accounts/{account_id}/transactions",
    "transaction": "/v1/bank-accounts/{account_id}/transactions/{transaction_id}",
    "refresh": "/v1/bank-accounts/refresh",
    "banks": "/v1/banks",
    "payments": "/v1/payments/single",
    "payment": "/v1/payments/single/{payment_id}",
    "bulk_payments": "/v1/payments/bulk",
    "bulk_payment": "/v1/payments/bulk/{payment_id}",
}
"""
The paths of payments are documented, but for the list of single ones. All others Everifin does not
publish: they are inferred from the resource names in its error samples.
"""

DEFAULT_API_FIELDS: Mapping[str, Mapping[str, str]] = {
    "account": {
        "name": "name",
        "owner_name": "ownerName",
        "iban": "iban",
        "bban": "bban",
        "currency": "currency",
        "type": "type",
        "bank_id": "bankId",
        "bank_name": "bankName",
        "bank_bic": "bankBic",
        "country_code": "countryCode",
        "status": "status",
        "balances": "balances",
        "created_at": "createdAt",
        "last_updated": "lastUpdated",
    },
    "balance": {
        "type": "type",
        "amount": "amount",
        "currency": "currency",
        "last_updated": "lastUpdated",
    },
    "transaction": {
        "direction": "direction",
        "amount": "amount",
        "currency": "currency",
        "booking_date": "bookingDate",
        "value_date": "valueDate",
        "counterparty_name": "counterpartyName",
        "counterparty_iban": "counterpartyIban",
        "counterparty_bic": "counterpartyBic",
        "variable_symbol": "variableSymbol",
        "constant_symbol": "constantSymbol",
        "specific_symbol": "specificSymbol",
        "reference": "reference",
        "payment_message": "paymentMessage",
        "status": "status",
        "type": "type",
        "created_at": "createdAt",
        "last_updated": "lastUpdated",
    },
    "bank": {
        "name": "name",
        "bic": "bic",
        "country_code": "countryCode",
    },
    "payment": {
        "status": "status",
        "amount": "amount",
        "currency": "currency",
        "fee": "fee",
        "fee_currency": "feeCurrency",
        "fee_type": "feeType",
        "sender_iban": "senderIban",
        "recipient_iban": "recipientIban",
        "recipient_name": "recipientName",
        "recipient_bank_bic": "recipientBankBic",
        "variable_symbol": "variableSymbol",
        "constant_symbol": "constantSymbol",
        "specific_symbol": "specificSymbol",
        "reference": "reference",
        "payment_message": "paymentMessage",
        "external_id": "externalId",
        "payment_date": "paymentDate",
        "created_at": "createdAt",
        "updated_at": "updatedAt",
    },
    "bulk_payment": {
        "status": "status",
        "name": "name",
        "sender_iban": "senderIban",
        "payer_name": "payerName",
        "payments_count": "allPaymentsCount",
        "total_amount": "totalAmount",
        "currency": "currency",
        "external_id": "externalId",
        "due_date": "dueDate",
        "created_at": "createdAt",
        "updated_at": "updatedAt",
        "payments": "payments",
    },
    "new_payment": {
        "external_id": "externalId",
        "recipient_address": "recipientAddress",
        "recipient_bank_address": "recipientBankAddress",
        "priority": "priority",
    },
    "input_option": {
        "value": "value",
        "label": "label",
    },
    "query": {
        "updated_from": "updatedFrom",
        "created_from": "createdFrom",
        "booking_date_from": "bookingDateFrom",
        "booking_date_to": "bookingDateTo",
        "value_date_from": "valueDateFrom",
        "value_date_to": "valueDateTo",
        "direction": "direction",
        "page": "page",
        "page_size": "countPerPage",
        "sort": "sort",
    },
    "pagination": {
        "last": "last",
        "next_page_url": "nextPageUrl",
        "total": "countTotal",
    },
}
"""
By object, our name of each field and Everifin's; the ``id`` of each is ``id``.

Documented are of a transaction ``created_at``, ``last_updated`` and ``direction``, of a payment all
but ``external_id``, ``payment_date``, ``created_at`` and ``updated_at``, of a bulk payment all but
``external_id``, and of a query the four ``_from`` filters. Those of a bank were seen in a client of
Everifin's payment gateway; query and pagination of pages are documented for that gateway alone. All
others are inferred from the payment objects.

A ``new_payment`` is a single one that is sent: what stands here is documented for items of a bulk,
and what does not is documented. An ``input_option`` is one to choose from while a payment is
processed.
"""
