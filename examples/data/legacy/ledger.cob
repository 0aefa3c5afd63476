       IDENTIFICATION DIVISION.
       PROGRAM-ID. LEDGER.
       DATA DIVISION.
       WORKING-STORAGE SECTION.
       01  WS-POSTING.
           05  PO-ACCOUNT          PIC 9(8).
           05  PO-AMOUNT           PIC S9(9)V99.
           05  PO-YEAR             PIC 99.
           05  PO-VOUCHER          PIC X(10).
       01  WS-FULL-YEAR            PIC 9(4)      VALUE ZERO.
       01  WS-BATCH-TOTAL          PIC S9(11)V99 VALUE ZERO.
       01  WS-SUSPENSE-ACCOUNT     PIC 9(8)      VALUE 99990000.
       PROCEDURE DIVISION.
       MAIN-LINE.
           PERFORM WIDEN-YEAR.
           PERFORM POST-ENTRY.
           PERFORM CHECK-BALANCE.
           STOP RUN.

       WIDEN-YEAR.
      * Two-digit years: below 50 is 20xx, the rest is 19xx. The
      * pivot of 50 was chosen in 1998 and fails after 2049.
           IF PO-YEAR < 50
               COMPUTE WS-FULL-YEAR = 2000 + PO-YEAR
           ELSE
               COMPUTE WS-FULL-YEAR = 1900 + PO-YEAR
           END-IF.

       POST-ENTRY.
      * A posting without a voucher goes to the suspense account
      * and waits there for the auditor.
           IF PO-VOUCHER = SPACES
               MOVE WS-SUSPENSE-ACCOUNT TO PO-ACCOUNT
           END-IF.
           ADD PO-AMOUNT TO WS-BATCH-TOTAL.

       CHECK-BALANCE.
      * Debits and credits of a batch must cancel out.
           IF WS-BATCH-TOTAL NOT = ZERO
               DISPLAY "BATCH OUT OF BALANCE BY " WS-BATCH-TOTAL
               MOVE 8 TO RETURN-CODE
           END-IF.
